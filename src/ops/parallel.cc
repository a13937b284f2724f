#include "ops/parallel.h"

#include <ATen/Parallel.h>

#include <algorithm>

#include "base/threads.h"

namespace weft {
namespace {

constexpr int64_t kRangesPerThread = 4;  // so that a thread that is held up leaves its share to the others

}  // namespace

void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  if (count <= 0) return;
  const int threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  const int64_t pieces = kRangesPerThread * threads;
  run_in_parallel(count, std::max(grain, (count + pieces - 1) / pieces), threads, body);
}

}  // namespace weft
