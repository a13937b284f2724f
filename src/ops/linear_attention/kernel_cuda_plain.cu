// The plain form's forward. A block holds some columns of one head and walks the tokens.
#include "ops/linear_attention/plain.cuh"

namespace weft::kernels {
namespace plain {
namespace {

constexpr int kWarps = 4;

template <int kRows, Form kForm>
struct Forward {
  using S = Sizes<kRows>;
  static constexpr bool kErases = kForm == Form::delta || kForm == Form::low_rank;
  static constexpr int kBlockColumns = kWarps * S::kColumns;
  // k . q of a token (with a bonus: of its own value), and erase_write . q
  struct Dots {
    float key[S::kTokens], erase[S::kTokens], beta[S::kTokens], write[S::kTokens];
    bool fresh[S::kTokens];
  };

  const CudaLinearAttention& p;
  const Head head;
  const Keys<kRows, kForm, 32 * kWarps> keys;
  float* values;  // [kTokens, kBlockColumns] what is written: w v; with a bonus v
  Dots& dots;
  int64_t first;  // column of the block

  __device__ void fill_values(int64_t begin, int count) const {
    with_rows(p.v, head.b, begin, head.h, [&](const auto* v) {
      fill<S::kTokens, kBlockColumns, 32 * kWarps>(
          values, v + first, p.v.token, count, p.value_width - first,
          [&](int t, float x) { return kForm == Form::bonus ? x : x * write_of(p, head, begin + t); });
    });
  }

  __device__ void fill_dots(int64_t begin, int count) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    for (int t = static_cast<int>(threadIdx.x) / 32; t < count; t += kWarps) {
      float key = 0, erase = 0;
      for (int d = lane; d < S::kKeys; d += 32) {
        const float q = keys.q()[t * S::kKeys + d], k = keys.k()[t * S::kKeys + d];
        if constexpr (kForm == Form::bonus) {
          if (d < p.key_width) key += q * k * p.bonus[head.h * p.key_width + d];
        } else {
          key += q * k;
        }
        if constexpr (kForm == Form::low_rank) erase += q * keys.write()[t * S::kKeys + d];
      }
      dots.key[t] = warp_sum(key);
      if constexpr (kForm == Form::low_rank) dots.erase[t] = warp_sum(erase);
      if constexpr (kForm == Form::bonus) dots.write[t] = write_of(p, head, begin + t);
      dots.fresh[t] = starts_at(p, head, begin + t);
      if constexpr (kForm == Form::delta) dots.beta[t] = beta_of(p, head, begin + t);
    }
  }

  // Token t of those in shared memory; returns y and what was recalled of the column that this lane holds.
  __device__ float2 token(State<kRows>& state, int t, int column) const {
    const int row = t * S::kKeys + static_cast<int>(threadIdx.x) % 32 * kRows;
    float q[kRows], k[kRows], decay[kRows], read[kRows], out[S::kColumns], recall[S::kColumns];
    read_floats(q, keys.q() + row), read_floats(k, keys.k() + row), read_floats(decay, keys.decay() + row);
    if constexpr (kForm == Form::low_rank) read_floats(read, keys.read() + row);
#pragma unroll
    for (int c = 0; c < S::kColumns; ++c) {
      out[c] = recall[c] = 0;
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const float before = state.at[c][i], after = before * decay[i];
        out[c] += (kForm == Form::bonus ? before : after) * q[i];
        if constexpr (kForm == Form::delta) recall[c] += after * k[i];
        if constexpr (kForm == Form::low_rank) recall[c] += before * read[i];
        state.at[c][i] = after;
      }
    }
    const float* value_row = values + t * kBlockColumns + static_cast<int>(threadIdx.x) / 32 * S::kColumns;
    float value[S::kColumns], own_value = value_row[column], own_recall = 0;
    float y = sum_columns(out);
    if constexpr (kErases) own_recall = sum_columns(recall);
    if constexpr (kForm == Form::delta) {
      own_value -= dots.beta[t] * own_recall;
      spread_columns(value, own_value);
    } else {
      read_floats(value, value_row);
    }
    y += dots.key[t] * own_value;
    if constexpr (kForm == Form::low_rank) {
      y += dots.erase[t] * own_recall;
      float write[kRows];
      read_floats(write, keys.write() + row);
      spread_columns(recall, own_recall);
#pragma unroll
      for (int c = 0; c < S::kColumns; ++c)
#pragma unroll
        for (int i = 0; i < kRows; ++i) state.at[c][i] += write[i] * recall[c];
    }
#pragma unroll
    for (int c = 0; c < S::kColumns; ++c) {
      const float written = kForm == Form::bonus ? dots.write[t] * value[c] : value[c];
#pragma unroll
      for (int i = 0; i < kRows; ++i) state.at[c][i] += k[i] * written;
    }
    return {y, own_recall};
  }
};

template <int kRows, Form kForm>
__global__ void __launch_bounds__(32 * kWarps)
    forward_kernel(CudaLinearAttention p, float* states, float* recalled) {
  using F = Forward<kRows, kForm>;
  using S = Sizes<kRows>;
  __shared__ alignas(16) float key_memory[Keys<kRows, kForm, 32 * kWarps>::kFloats];
  __shared__ alignas(16) float values[S::kTokens * F::kBlockColumns];
  __shared__ typename F::Dots dots;
  const auto slices = static_cast<unsigned>((p.value_width + F::kBlockColumns - 1) / F::kBlockColumns);
  const int64_t first = blockIdx.x % slices * F::kBlockColumns;
  const Head head(p, blockIdx.x / slices);
  const F f{p, head, {key_memory}, values, dots, first};
  const int lane = static_cast<int>(threadIdx.x) % 32, own = lane / S::kLanes;
  const int64_t column = first + static_cast<int64_t>(threadIdx.x / 32) * S::kColumns;
  const bool writes = lane % S::kLanes == 0 && column + own < p.value_width;

  State<kRows> state;
  const int64_t size = p.key_width * p.value_width;
  if (p.initial_state)
    state.load_matrix(p.initial_state + head.index(p) * size, p.key_width, p.value_width, column);
  else
    state.clear();
  const int64_t intervals = (p.tokens + kInterval - 1) / kInterval;
  for (int64_t begin = 0; begin < p.tokens; begin += S::kTokens) {
    const int count = static_cast<int>(min(static_cast<int64_t>(S::kTokens), p.tokens - begin));
    f.keys.fill_all(p, head, begin, count);
    f.fill_values(begin, count);
    __syncthreads();
    f.fill_dots(begin, count);
    __syncthreads();
    if (states && begin % kInterval == 0)
      state.store_saved(states + (head.index(p) * intervals + begin / kInterval) * p.value_width * S::kKeys,
                        p.value_width, column);
    int64_t at = head.row(p, begin) * p.value_width + column + own;
    for (int t = 0; t < count; ++t, at += p.heads * p.value_width) {
      if (dots.fresh[t]) state.clear();
      const float2 found = f.token(state, t, own);
      if (writes) store(p.v.type, p.y, at, found.x);
      if (F::kErases && writes && recalled) recalled[at] = found.y;
    }
    __syncthreads();
  }
  state.store_matrix(p.state + head.index(p) * size, p.key_width, p.value_width, column);
}

bool takes(const CudaLinearAttention& p) { return p.key_width <= 256; }
int64_t saved_bytes(const CudaLinearAttention& p) { return Saved(p, nullptr).floats * 4; }
int64_t forward_scratch(const CudaLinearAttention&) { return 0; }

CudaStatus forward(const CudaLinearAttention& p, void* saved, void*, void* stream) {
  const Saved s(p, saved);
  return with_form(p, [&]<int kRows, Form kForm>() {
    constexpr int kColumns = Forward<kRows, kForm>::kBlockColumns;
    const int64_t blocks = p.batch * p.heads * ((p.value_width + kColumns - 1) / kColumns);
    forward_kernel<kRows, kForm>
        <<<static_cast<unsigned>(blocks), 32 * kWarps, 0, static_cast<cudaStream_t>(stream)>>>(p, s.states,
                                                                                               s.recalled);
    return last_status();
  });
}

}  // namespace
}  // namespace plain

const CudaLinearAttentionForm kCudaPlainForm = {
    "plain",        plain::takes,   plain::saved_bytes, plain::forward_scratch, plain::backward_scratch,
    plain::forward, plain::backward};

}  // namespace weft::kernels
