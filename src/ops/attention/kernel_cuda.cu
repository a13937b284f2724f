// Which kernel takes which case.
#include "ops/attention/kernel_cuda.h"

#include <algorithm>

namespace weft::kernels {
namespace {

bool fits_tensor_cores(const AttentionCuda& p) {
  const auto same = [&](const CudaRows& x) { return x.type == p.q.type; };
  return p.q.type != CudaType::fp32 && same(p.k) && same(p.v) && !p.k.scale && p.out.type == p.q.type &&
         p.scale > 0 && p.key_width % 8 == 0 && p.value_width % 8 == 0 &&
         std::max(p.key_width, p.value_width) <= 256;
}

bool fits_hopper(const AttentionCuda& p, const AttentionDevice& device) {
  return device.capability == 90 && p.keys > 0 && p.queries > 0 && p.softcap == 0 && !p.slopes;
}

CudaStatus forward(const AttentionCuda& p, const AttentionDevice& device) {
  if (p.batch * p.queries == 0) return nullptr;
  if (!fits_tensor_cores(p)) return attention_forward_plain(p, device.stream);
  return fits_hopper(p, device) ? attention_forward_sm90(p, device) : attention_forward_mma(p, device.stream);
}

CudaStatus backward(const AttentionCuda& p, const AttentionDevice& device) {
  if (p.batch == 0 || (p.queries == 0 && p.keys == 0)) return nullptr;
  if (const auto failed = attention_statistics(p, device.stream)) return failed;
  if (!fits_tensor_cores(p) || p.dout.type != p.q.type) return attention_backward_plain(p, device.stream);
  return fits_hopper(p, device) ? attention_backward_sm90(p, device)
                                : attention_backward_mma(p, device.stream);
}

}  // namespace

const AttentionCudaTable& attention_cuda_table() {
  static const AttentionCudaTable table = {attention_mask_size,      attention_mask_tables, forward,
                                           attention_decode_scratch, attention_decode,      backward};
  return table;
}

}  // namespace weft::kernels
