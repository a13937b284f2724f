// The plain form's backward. The first kernel walks the intervals in reverse; in each it goes back over the tokens with
// dS, then forward from the saved state with S, as some gradients of a row need the one and some the other. What rows
// get from the block's columns goes to scratch, for kernel_cuda_plain_finish.cu.
#include "ops/linear_attention/plain_backward.cuh"

namespace weft::kernels::plain {
namespace {

constexpr int kWarps = kBackwardWarps;

template <int kRows>
constexpr int block_columns() {
  return kWarps * Sizes<kRows>::kColumns;
}

template <int kRows, Form kForm>
struct Memory {
  using S = Sizes<kRows>;
  static constexpr bool kErases = kForm == Form::delta || kForm == Form::low_rank;
  static constexpr int kColumns = block_columns<kRows>(), kPart = S::kTokens * S::kKeys,
                       kValue = S::kTokens * kColumns,
                       kParts = kForm == Form::low_rank || kForm == Form::delta ? 2 : 1;
  alignas(16) float keys[Keys<kRows, kForm, 32 * kWarps>::kFloats];
  alignas(16) float parts[kParts][kWarps][kPart];  // of each warp, what rows get
  alignas(16) float v[kValue], dy[kValue], recalled[kValue], dvalue[kValue];
  alignas(16) float drecalled[kErases ? kInterval * kColumns : 4];
  float beta[S::kTokens], write[S::kTokens],
      own[S::kTokens];  // own: with a bonus, of a token's own value in its y
  bool fresh[S::kTokens];
};

template <int kRows, Form kForm>
struct Backward {
  using S = Sizes<kRows>;
  using M = Memory<kRows, kForm>;
  static constexpr bool kErases = M::kErases;
  static constexpr int kColumns = M::kColumns;

  const CudaLinearAttention& p;
  const CudaLinearAttentionGradients& g;
  const Scratch& scratch;
  const float* recalled;
  M& m;
  const Head head;
  const int64_t slice, slices, first;  // first: column of the block
  const int lane, warp;

  __device__ Keys<kRows, kForm, 32 * kWarps> keys() const { return {m.keys}; }
  __device__ int key_row(int t) const { return t * S::kKeys + lane * kRows; }
  __device__ int value_row(int t) const { return t * kColumns + warp * S::kColumns; }

  // What is read of tokens [begin, begin + count), by the whole block.
  __device__ void fill(int64_t begin, int count) const {
    constexpr int kThreads = 32 * kWarps;
    keys().fill_all(p, head, begin, count);
    const int64_t width = p.value_width - first, stride = p.heads * p.value_width,
                  at = head.row(p, begin) * p.value_width + first;
    const auto same = [](int, float x) { return x; };
    with_rows({g.dy, p.v.type}, 0, 0, 0, [&](const auto* dy) {
      plain::fill<S::kTokens, kColumns, kThreads>(m.dy, dy + at, stride, count, width, same);
    });
    with_rows(p.v, head.b, begin, head.h, [&](const auto* v) {
      plain::fill<S::kTokens, kColumns, kThreads>(m.v, v + first, p.v.token, count, width, same);
    });
    if constexpr (kErases)
      plain::fill<S::kTokens, kColumns, kThreads>(m.recalled, recalled + at, stride, count, width, same);
    if (const int t = static_cast<int>(threadIdx.x); t < count) {
      m.beta[t] = beta_of(p, head, begin + t), m.write[t] = write_of(p, head, begin + t);
      m.fresh[t] = starts_at(p, head, begin + t);
    }
    __syncthreads();
    if constexpr (kForm == Form::bonus) {
      for (int t = warp; t < count; t += kWarps) {
        float own = 0;
        for (int d = lane; d < p.key_width; d += 32)
          own +=
              keys().q()[t * S::kKeys + d] * keys().k()[t * S::kKeys + d] * p.bonus[head.h * p.key_width + d];
        m.own[t] = warp_sum(own);
      }
      __syncthreads();
    }
  }

  // What token t writes.
  __device__ void read_written(float (&x)[S::kColumns], int t) const {
    read_floats(x, m.v + value_row(t));
#pragma unroll
    for (int c = 0; c < S::kColumns; ++c) x[c] *= m.write[t];
    if constexpr (kForm == Form::delta) {
      float r[S::kColumns];
      read_floats(r, m.recalled + value_row(t));
#pragma unroll
      for (int c = 0; c < S::kColumns; ++c) x[c] -= m.beta[t] * r[c];
    }
  }

  // parts[part] of token t: the sum over the warp's columns of state . x
  __device__ void put_rows(int part, int t, const State<kRows>& state, const float (&x)[S::kColumns]) const {
    float sum[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      sum[i] = 0;
#pragma unroll
      for (int c = 0; c < S::kColumns; ++c) sum[i] += state.at[c][i] * x[c];
    }
    write_floats(m.parts[part][warp] + key_row(t), sum);
  }

  // Adds parts[part] of `count` tokens up over the warps.
  __device__ void take_rows(int part, Output output, int64_t begin, int count) const {
    float* to =
        scratch.rows +
        (((output * slices + slice) * p.batch * p.heads + head.index(p)) * p.tokens + begin) * p.key_width;
    const int d = static_cast<int>(threadIdx.x) % S::kKeys;
    if (d >= p.key_width) return;
    to += d;
    for (int t = static_cast<int>(threadIdx.x) / S::kKeys; t < count; t += 32 * kWarps / S::kKeys) {
      float sum = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) sum += m.parts[part][w][t * S::kKeys + d];
      to[t * p.key_width] = sum;
    }
  }

  // Token t back: from the gradient of the state behind it to that of the state before.
  __device__ void back(State<kRows>& ds, int t, float* drecalled) const {
    float q[kRows], k[kRows], decay[kRows], x[S::kColumns], dvalue[S::kColumns];
    read_floats(q, keys().q() + key_row(t)), read_floats(k, keys().k() + key_row(t));
    read_floats(decay, keys().decay() + key_row(t));
    read_floats(x, m.dy + value_row(t));
    const auto add_read = [&] {
#pragma unroll
      for (int c = 0; c < S::kColumns; ++c)
#pragma unroll
        for (int i = 0; i < kRows; ++i) ds.at[c][i] += q[i] * x[c];
    };
    float value[S::kColumns];
    read_written(value, t);
    put_rows(0, t, ds, value);
    if constexpr (kForm == Form::low_rank) {
      read_floats(value, m.recalled + value_row(t));
      put_rows(1, t, ds, value);
    }
    if constexpr (kForm != Form::bonus) add_read();
#pragma unroll
    for (int c = 0; c < S::kColumns; ++c) {
      dvalue[c] = 0;
#pragma unroll
      for (int i = 0; i < kRows; ++i) dvalue[c] += ds.at[c][i] * k[i];
    }
    const int own = lane / S::kLanes;
    const float own_dvalue = sum_columns(dvalue);
    if (lane % S::kLanes == 0) m.dvalue[value_row(t) + own] = own_dvalue;

    float row[kRows], dr[S::kColumns];  // row: what the erase read with
    if constexpr (kErases) {
      float own_dr;
      if constexpr (kForm == Form::delta) {
        own_dr = -m.beta[t] * own_dvalue;
      } else {
        read_floats(row, keys().write() + key_row(t));
#pragma unroll
        for (int c = 0; c < S::kColumns; ++c) {
          dr[c] = 0;
#pragma unroll
          for (int i = 0; i < kRows; ++i) dr[c] += ds.at[c][i] * row[i];
        }
        own_dr = sum_columns(dr);
        read_floats(row, keys().read() + key_row(t));
      }
      if (lane % S::kLanes == 0) drecalled[warp * S::kColumns + own] = own_dr;
      spread_columns(dr, own_dr);
    }
#pragma unroll
    for (int c = 0; c < S::kColumns; ++c)
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        float& at = ds.at[c][i];
        if constexpr (kForm == Form::delta) at = (at + k[i] * dr[c]) * decay[i];
        if constexpr (kForm == Form::low_rank) at = at * decay[i] + row[i] * dr[c];
        if constexpr (!kErases) at *= decay[i];
      }
    if constexpr (kForm == Form::bonus) add_read();
  }

  // What columns get, of `count` tokens.
  __device__ void finish_columns(int64_t begin, int count) const {
    if (const int c = static_cast<int>(threadIdx.x) % kColumns; g.dv && first + c < p.value_width) {
      const int64_t at = head.row(p, begin) * p.value_width + first + c;
      for (int t = static_cast<int>(threadIdx.x) / kColumns; t < count; t += 32 * kWarps / kColumns) {
        float dv = m.write[t] * m.dvalue[t * kColumns + c];
        if constexpr (kForm == Form::bonus) dv += m.own[t] * m.dy[t * kColumns + c];
        store(p.v.type, g.dv, at + t * p.heads * p.value_width, dv);
      }
    }
    const int64_t stride = slices * p.batch * p.heads * p.tokens;
    for (int t = warp; t < count; t += kWarps) {
      float write = 0, erase = 0, value = 0, read = 0;
      for (int c = lane; c < kColumns; c += 32) {
        const int i = t * kColumns + c;
        write += m.v[i] * m.dvalue[i];
        if constexpr (kForm == Form::delta) erase += m.recalled[i] * m.dvalue[i];
        float written = kForm == Form::bonus ? m.v[i] : m.write[t] * m.v[i];
        if constexpr (kForm == Form::delta) written -= m.beta[t] * m.recalled[i];
        value += written * m.dy[i];
        if constexpr (kForm == Form::low_rank) read += m.recalled[i] * m.dy[i];
      }
      write = warp_sum(write), value = warp_sum(value);
      if constexpr (kForm == Form::delta) erase = warp_sum(erase);
      if constexpr (kForm == Form::low_rank) read = warp_sum(read);
      float* to = scratch.sums + (slice * p.batch * p.heads + head.index(p)) * p.tokens + begin + t;
      if (lane != 0) continue;
      to[kSumWrite * stride] = write, to[kSumValue * stride] = value;
      if constexpr (kForm == Form::delta) to[kSumRecalled * stride] = erase;
      if constexpr (kForm == Form::low_rank) to[kSumRead * stride] = read;
    }
  }

  // Token t forward: what rows get from the state.
  __device__ void forward(State<kRows>& s, int t, const float* drecalled) const {
    float k[kRows], decay[kRows], x[S::kColumns];
    read_floats(k, keys().k() + key_row(t)), read_floats(decay, keys().decay() + key_row(t));
    const auto put_read = [&] {
      read_floats(x, m.dy + value_row(t));
      put_rows(0, t, s, x);
    };
    if constexpr (kForm == Form::bonus) put_read();
    if constexpr (kForm == Form::low_rank) {
      read_floats(x, drecalled + warp * S::kColumns);
      put_rows(1, t, s, x);
    }
#pragma unroll
    for (int c = 0; c < S::kColumns; ++c)
#pragma unroll
      for (int i = 0; i < kRows; ++i) s.at[c][i] *= decay[i];
    if constexpr (kForm != Form::bonus) put_read();
    if constexpr (kForm == Form::delta) {
      read_floats(x, drecalled + warp * S::kColumns);
      put_rows(1, t, s, x);
    }
    read_written(x, t);
    add(s, k, x);
    if constexpr (kForm == Form::low_rank) {
      read_floats(k, keys().write() + key_row(t));
      read_floats(x, m.recalled + value_row(t));
      add(s, k, x);
    }
  }
  static __device__ void add(State<kRows>& s, const float (&row)[kRows], const float (&x)[S::kColumns]) {
#pragma unroll
    for (int c = 0; c < S::kColumns; ++c)
#pragma unroll
      for (int i = 0; i < kRows; ++i) s.at[c][i] += row[i] * x[c];
  }

  __device__ void back_over(State<kRows>& ds, int64_t begin, int64_t end) const {
    for (int64_t at = begin + (end - 1 - begin) / S::kTokens * S::kTokens; at >= begin; at -= S::kTokens) {
      const int count = static_cast<int>(min(static_cast<int64_t>(S::kTokens), end - at));
      fill(at, count);
      for (int t = count - 1; t >= 0; --t) {
        back(ds, t, m.drecalled + (kErases ? (at - begin + t) * kColumns : 0));
        if (m.fresh[t]) ds.clear();
      }
      __syncthreads();
      take_rows(0, kDk, at, count);
      if constexpr (kForm == Form::low_rank) take_rows(1, kDwrite, at, count);
      finish_columns(at, count);
      __syncthreads();
    }
  }

  __device__ void forward_over(State<kRows>& s, int64_t begin, int64_t end) const {
    for (int64_t at = begin; at < end; at += S::kTokens) {
      const int count = static_cast<int>(min(static_cast<int64_t>(S::kTokens), end - at));
      fill(at, count);
      for (int t = 0; t < count; ++t) {
        if (m.fresh[t]) s.clear();
        forward(s, t, m.drecalled + (kErases ? (at - begin + t) * kColumns : 0));
      }
      __syncthreads();
      take_rows(0, kDq, at, count);
      if constexpr (kErases) take_rows(1, kDread, at, count);
      __syncthreads();
    }
  }

  // rowsum(dS . S) over the block's columns.
  __device__ void energy(const State<kRows>& s, const State<kRows>& ds, int64_t interval,
                         int64_t intervals) const {
    float sum[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      sum[i] = 0;
#pragma unroll
      for (int c = 0; c < S::kColumns; ++c) sum[i] += s.at[c][i] * ds.at[c][i];
    }
    write_floats(m.parts[0][warp] + lane * kRows, sum);
    __syncthreads();
    float* to =
        scratch.energy + ((slice * p.batch * p.heads + head.index(p)) * intervals + interval) * p.key_width;
    for (int d = static_cast<int>(threadIdx.x); d < p.key_width; d += 32 * kWarps) {
      float all = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) all += m.parts[0][w][d];
      to[d] = all;
    }
    __syncthreads();
  }
};

template <int kRows, Form kForm>
__global__ void __launch_bounds__(32 * kWarps, kRows == 8 ? 1 : 2)
    backward_kernel(CudaLinearAttention p, CudaLinearAttentionGradients g, Scratch scratch,
                    const float* states, const float* recalled) {
  using B = Backward<kRows, kForm>;
  extern __shared__ __align__(16) unsigned char memory[];
  const auto slices = static_cast<unsigned>((p.value_width + B::kColumns - 1) / B::kColumns),
             slice = blockIdx.x % slices;
  const B b{p,
            g,
            scratch,
            recalled,
            *reinterpret_cast<typename B::M*>(memory),
            Head(p, blockIdx.x / slices),
            slice,
            slices,
            int64_t{slice} * B::kColumns,
            static_cast<int>(threadIdx.x) % 32,
            static_cast<int>(threadIdx.x) / 32};
  const int64_t column = b.first + b.warp * B::S::kColumns, head = b.head.index(p),
                size = p.key_width * p.value_width, intervals = (p.tokens + kInterval - 1) / kInterval;
  State<kRows> ds;
  if (g.dstate)
    ds.load_matrix(g.dstate + head * size, p.key_width, p.value_width, column);
  else
    ds.clear();
  for (int64_t interval = intervals - 1; interval >= 0; --interval) {
    const int64_t begin = interval * kInterval, end = min(begin + kInterval, p.tokens);
    b.back_over(ds, begin, end);
    State<kRows> s;
    s.load_saved(states + (head * intervals + interval) * p.value_width * B::S::kKeys, p.value_width, column);
    b.energy(s, ds, interval, intervals);
    b.forward_over(s, begin, end);
  }
  if (g.dinitial) ds.store_matrix(g.dinitial + head * size, p.key_width, p.value_width, column);
}

template <int kRows, Form kForm>
CudaStatus launch(const CudaLinearAttention& p, const CudaLinearAttentionGradients& g, const Saved& saved,
                  const Scratch& scratch, cudaStream_t stream) {
  constexpr auto kernel = &backward_kernel<kRows, kForm>;
  constexpr size_t kBytes = sizeof(Memory<kRows, kForm>);
  if (const auto failed = allow_shared(kernel, kBytes)) return status_of(failed);
  const int64_t heads = p.batch * p.heads, slices = slices_of(p);
  kernel<<<static_cast<unsigned>(heads * slices), 32 * kWarps, kBytes, stream>>>(p, g, scratch, saved.states,
                                                                                 saved.recalled);
  if (const auto failed = last_status()) return failed;
  return finish(p, g, scratch, slices, stream);
}

}  // namespace

int64_t backward_scratch(const CudaLinearAttention& p) { return Scratch(p, nullptr).floats * 4; }

CudaStatus backward(const CudaLinearAttention& p, const CudaLinearAttentionGradients& g, const void* saved,
                    void* scratch, void* stream) {
  const Saved kept(p, const_cast<void*>(saved));
  const Scratch room(p, scratch);
  return with_form(p, [&]<int kRows, Form kForm>() {
    return launch<kRows, kForm>(p, g, kept, room, static_cast<cudaStream_t>(stream));
  });
}

}  // namespace weft::kernels::plain
