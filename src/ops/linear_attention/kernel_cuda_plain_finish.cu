// The second step of the plain form's backward: adds up what rows got from every slice of the columns, and finds the
// gradients of decays.
//
// With E_t = rowsum(dS_t . S_t), elementwise, dS_t the gradient of the state behind token t without its read, the gradient
// of the log decay of the next token is E_t less what its erase reads of the state before. From there to the next E its
// reads go out and what it writes comes in. Pairs of a read and a write of the same token are in neither: they would
// cancel, but when little outlives a token their rounding would be larger than what is left. One E for each interval of
// tokens is enough to start from.
#include "ops/linear_attention/plain_backward.cuh"

namespace weft::kernels::plain {
namespace {

// Sums over slices and, channel by channel, what follows from them. A block takes an interval of a head, a thread one
// channel.
template <Form kForm>
__global__ void finish_kernel(CudaLinearAttention p, CudaLinearAttentionGradients g, Scratch scratch,
                              int64_t slices) {
  __shared__ float warps[kInterval][8];  // the gradients of scalar log decays
  const auto intervals = static_cast<unsigned>((p.tokens + kInterval - 1) / kInterval),
             interval = blockIdx.x % intervals;
  const Head head(p, blockIdx.x / intervals);
  const int64_t heads = p.batch * p.heads, begin = interval * kInterval,
                end = min(begin + kInterval, p.tokens);
  const int d = static_cast<int>(threadIdx.x);
  const bool inside = d < p.key_width;
  const auto sum = [&](const float* from, int64_t stride) {
    float all = 0;
    for (int64_t s = 0; s < slices; ++s) all += from[s * stride];
    return all;
  };
  const auto row_sum = [&](Output output, int64_t t) {
    const int64_t stride = heads * p.tokens * p.key_width;
    return sum(scratch.rows + output * slices * stride + (head.index(p) * p.tokens + t) * p.key_width + d,
               stride);
  };
  const auto column_sum = [&](Sum which, int64_t t) {
    const int64_t stride = heads * p.tokens;
    return sum(scratch.sums + which * slices * stride + head.index(p) * p.tokens + t, stride);
  };
  const bool decays = g.dlog_decay != nullptr;
  const float bonus = kForm != Form::bonus ? 1 : inside ? p.bonus[head.h * p.key_width + d] : 0;
  float energy = 0, dbonus = 0;
  if (decays && inside)
    energy = sum(scratch.energy + (head.index(p) * intervals + interval) * p.key_width + d,
                 heads * intervals * p.key_width);
  for (int64_t t = begin; t < end; ++t) {
    float dg = 0;
    if (inside) {
      const float q = p.scale * load(p.q, head.b, t, head.key, d), k = load(p.k, head.b, t, head.key, d);
      const float own = column_sum(kSumValue, t);  // of the token's write in its own read
      float dq = row_sum(kDq, t), dk = row_sum(kDk, t), read = q * dq, written = k * dk, erased = 0;
      const int64_t at = head.row(p, t) * p.key_width + d;
      if constexpr (kForm == Form::delta) {
        const float dread = row_sum(kDread, t);
        read += k * dread, dk += dread;
      }
      if constexpr (kForm == Form::low_rank) {
        const float a = load(p.erase_read, head.b, t, head.erase, d),
                    b = load(p.erase_write, head.b, t, head.erase, d), dread = row_sum(kDread, t),
                    own_read = column_sum(kSumRead, t);
        float dwrite = row_sum(kDwrite, t);
        erased = a * dread, written += b * dwrite;
        dq += b * own_read, dwrite += q * own_read;
        const CudaType type = g.erase_fp32 ? CudaType::fp32 : p.v.type;
        if (g.derase_read) store(type, g.derase_read, at, dread);
        if (g.derase_write) store(type, g.derase_write, at, dwrite);
      }
      if (decays) {
        if constexpr (kForm == Form::bonus) energy -= read;
        const bool forgets = starts_at(p, head, t) || decay_of(p, head, t, d) == 0;
        dg = forgets ? 0 : energy - erased;
        energy = dg + written;
        if constexpr (kForm != Form::bonus) energy -= read;
      }
      dbonus += q * k * own;
      dq += k * bonus * own, dk += q * bonus * own;
      dq *= p.scale;
      const CudaType type = g.group_fp32 ? CudaType::fp32 : p.v.type;
      if (g.dq) store(type, g.dq, at, dq);
      if (g.dk) store(type, g.dk, at, dk);
      if (decays && p.decay == Decay::vector) g.dlog_decay[at] = dg;
    }
    if (decays && p.decay == Decay::scalar) {
      dg = warp_sum(dg);
      if (d % 32 == 0) warps[t - begin][d / 32] = dg;
    }
    if (d == 0) {
      if (g.dwrite) g.dwrite[head.row(p, t)] = column_sum(kSumWrite, t);
      if (kForm == Form::delta && g.dbeta) g.dbeta[head.row(p, t)] = -column_sum(kSumRecalled, t);
    }
  }
  if (kForm == Form::bonus && inside) scratch.bonus[blockIdx.x * p.key_width + d] = dbonus;
  if (!decays || p.decay != Decay::scalar) return;
  __syncthreads();
  for (int64_t t = begin + d; t < end; t += blockDim.x) {
    float all = 0;
    for (int w = 0; w < blockDim.x / 32; ++w) all += warps[t - begin][w];
    g.dlog_decay[head.row(p, t)] = all;
  }
}

// dbonus [B, H, K] from what each interval adds.
__global__ void bonus_kernel(CudaLinearAttention p, float* dbonus, const float* parts) {
  const int64_t intervals = (p.tokens + kInterval - 1) / kInterval, head = blockIdx.x;
  for (int64_t d = threadIdx.x; d < p.key_width; d += blockDim.x) {
    float all = 0;
    for (int64_t i = 0; i < intervals; ++i) all += parts[(head * intervals + i) * p.key_width + d];
    dbonus[head * p.key_width + d] = all;
  }
}

}  // namespace

CudaStatus finish(const CudaLinearAttention& p, const CudaLinearAttentionGradients& g, const Scratch& scratch,
                  int64_t slices, cudaStream_t stream) {
  const int64_t heads = p.batch * p.heads;
  const auto blocks = static_cast<unsigned>(heads * intervals_of(p)),
             threads = static_cast<unsigned>((p.key_width + 31) / 32 * 32);
  switch (form_of(p)) {
    case Form::none:
      finish_kernel<Form::none><<<blocks, threads, 0, stream>>>(p, g, scratch, slices);
      break;
    case Form::bonus:
      finish_kernel<Form::bonus><<<blocks, threads, 0, stream>>>(p, g, scratch, slices);
      break;
    case Form::delta:
      finish_kernel<Form::delta><<<blocks, threads, 0, stream>>>(p, g, scratch, slices);
      break;
    default:
      finish_kernel<Form::low_rank><<<blocks, threads, 0, stream>>>(p, g, scratch, slices);
      break;
  }
  if (const auto failed = last_status(); failed || !g.dbonus) return failed;
  bonus_kernel<<<static_cast<unsigned>(heads), 128, 0, stream>>>(p, g.dbonus, scratch.bonus);
  return last_status();
}

}  // namespace weft::kernels::plain
