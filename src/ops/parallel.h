// The one place where ops use threads: torch's own pool, so that ours and its never compete.
#pragma once

#include <cstdint>
#include <functional>

namespace weft {

// Calls body(begin, end) on disjoint ranges that cover [0, count), each of at least `grain` items, in
// parallel. Runs serially when called from inside a parallel region. Results must not depend on how the range
// is cut.
void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

}  // namespace weft
