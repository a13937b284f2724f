#include "ops/linear_attention/chunks.h"

namespace weft::ops {

ChunkTable::ChunkTable(int64_t batch, int64_t tokens, int64_t chunk, const at::Tensor& starts) {
  const auto marks = starts.defined() ? starts.contiguous() : at::Tensor();
  for (int64_t b = 0; b < batch; ++b) {
    offset.push_back(static_cast<int64_t>(begin.size()));
    const bool* start = marks.defined() ? marks.const_data_ptr<bool>() + b * tokens : nullptr;
    for (int64_t t = 0; t < tokens; ++t) {
      const bool fresh_here = start && start[t];
      if (t > 0 && !fresh_here && t - begin.back() < chunk) continue;
      begin.push_back(t);
      fresh.push_back(fresh_here);
    }
    begin.push_back(tokens);
    fresh.push_back(0);
  }
  offset.push_back(static_cast<int64_t>(begin.size()));
}

}  // namespace weft::ops
