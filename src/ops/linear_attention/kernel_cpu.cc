// Linear attention on the CPU: forward in chunks, and the step for decoding.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/linear_attention/kernel_cpu.cc"
#include "ops/simd/targets.h"

#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/linear_attention/chunk-inl.h"
#include "ops/linear_attention/kernel.h"

HWY_BEFORE_NAMESPACE();
namespace weft::kernels {
namespace HWY_NAMESPACE {

// y = q_in state + reads value (+ bonus v)
void chunk_outputs(const LinearAttentionProblem& p, const Chunk& c, const Workspace& w) {
  if (!c.empty)
    gemm(c.rows, p.value_width, p.key_width, plain(w.q_in, w.key_row), w.state, w.value_row, w.rows,
         w.value_row);
  for (int64_t r = 0; r < c.rows; r += kProductRows) {
    const int64_t rows = std::min(kProductRows, c.rows - r);
    gemm(rows, p.value_width, r + rows, plain(w.reads + r * w.pair_row, w.pair_row), w.value, w.value_row,
         w.rows + r * w.value_row, w.value_row, {1, !c.empty});
  }
  for (int64_t r = 0; p.bonus && r < c.rows; ++r)
    add_row(p.value_width, w.bonus[r], p.v.at(c.batch, c.begin + r, c.head), w.rows + r * w.value_row);
  store_rows(p, c, w.rows, w.value_row, p.y);
}

void copy_state(const LinearAttentionProblem& p, const float* from, int64_t from_row, float* to,
                int64_t to_row) {
  for (int64_t d = 0; d < p.key_width; ++d)
    std::copy(from + d * from_row, from + d * from_row + p.value_width, to + d * to_row);
}

void linear_attention_forward(const LinearAttentionProblem& p, float* scratch, int64_t begin, int64_t end) {
  Workspace w(p, scratch);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t state_at = task * p.key_width * p.value_width;
    if (p.initial_state)
      copy_state(p, p.initial_state + state_at, p.value_width, w.state, w.value_row);
    else
      fill_row(p.key_width * w.value_row, 0, w.state);
    for (int64_t index = 0; index < chunk_count(p, task); ++index) {
      const Chunk c = chunk_at(p, task, index, index == 0);
      if (c.empty) fill_row(p.key_width * w.value_row, 0, w.state);
      if (p.states) copy_state(p, w.state, w.value_row, saved_state(p, task, index), p.value_width);
      load_chunk(p, c, w);
      chunk_decays(p, c, w);
      chunk_pairs(p, c, w);
      chunk_values(p, c, w, w.state, w.value_row);
      if (p.bonus && p.y) chunk_bonus(p, c, w);
      if (p.values) store_rows(p, c, w.value, w.value_row, p.values);
      if (p.y) chunk_outputs(p, c, w);
      advance_state(p, c, w, w.state);
    }
    copy_state(p, w.state, w.value_row, p.state + state_at, p.value_width);
  }
}

// What one token does to a strip of at most kStripVectors vectors of columns, small enough to stay in the
// first-level cache between the sweep that reads and the sweep that writes.
constexpr int kStripVectors = 4;

struct StepToken {
  const float *q, *k;                      // [K]
  const float* decay;                      // [K] factors, or null for one
  float one_decay, beta, write, read_own;  // read_own: weight of the token's own value in y
};

template <int kVectors>
HWY_INLINE void step_strip(const LinearAttentionProblem& p, const StepToken& x, const float* v, float* state,
                           float* y, size_t last) {
  const hn::ScalableTag<float> d;
  const int64_t lanes = hn::Lanes(d);
  const auto mask = hn::FirstN(d, last);
  hn::Vec<decltype(d)> recalled[kVectors], read[kVectors], value[kVectors];
#pragma GCC unroll 4
  for (int j = 0; j < kVectors; ++j) recalled[j] = read[j] = hn::Zero(d);
  const bool before = p.bonus;
  for (int64_t i = 0; i < p.key_width; ++i) {
    const float decay = x.decay ? x.decay[i] : x.one_decay;
    const auto q = hn::Set(d, p.scale * x.q[i] * (before ? 1 : decay)), k = hn::Set(d, x.k[i] * decay);
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      const float* at = state + i * p.value_width + j * lanes;
      const auto s = j + 1 < kVectors ? hn::LoadU(d, at) : hn::MaskedLoad(mask, d, at);
      read[j] = hn::MulAdd(q, s, read[j]);
      recalled[j] = hn::MulAdd(k, s, recalled[j]);
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < kVectors; ++j) {
    const auto own = j + 1 < kVectors ? hn::LoadU(d, v + j * lanes) : hn::MaskedLoad(mask, d, v + j * lanes);
    value[j] = hn::NegMulAdd(hn::Set(d, x.beta), recalled[j], hn::Mul(hn::Set(d, x.write), own));
    const auto out = hn::MulAdd(hn::Set(d, x.read_own), before ? own : value[j], read[j]);
    if (j + 1 < kVectors)
      hn::StoreU(out, d, y + j * lanes);
    else
      hn::BlendedStore(out, mask, d, y + j * lanes);
  }
  for (int64_t i = 0; i < p.key_width; ++i) {
    const auto decay = hn::Set(d, x.decay ? x.decay[i] : x.one_decay), k = hn::Set(d, x.k[i]);
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      float* at = state + i * p.value_width + j * lanes;
      if (j + 1 < kVectors)
        hn::StoreU(hn::MulAdd(k, value[j], hn::Mul(decay, hn::LoadU(d, at))), d, at);
      else
        hn::BlendedStore(hn::MulAdd(k, value[j], hn::Mul(decay, hn::MaskedLoad(mask, d, at))), mask, d, at);
    }
  }
}

void step_head(const LinearAttentionProblem& p, const StepToken& x, const float* v, float* state, float* y) {
  const hn::ScalableTag<float> d;
  const int64_t lanes = hn::Lanes(d);
  for (int64_t j = 0; j < p.value_width; j += kStripVectors * lanes) {
    const int64_t left = p.value_width - j;
    if (left > 3 * lanes)
      step_strip<4>(p, x, v + j, state + j, y + j, left - 3 * lanes);
    else if (left > 2 * lanes)
      step_strip<3>(p, x, v + j, state + j, y + j, left - 2 * lanes);
    else if (left > lanes)
      step_strip<2>(p, x, v + j, state + j, y + j, left - lanes);
    else
      step_strip<1>(p, x, v + j, state + j, y + j, left);
  }
}

void linear_attention_step(const LinearAttentionProblem& p, float* decays, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task) {
    const int64_t b = task / p.heads, h = task % p.heads, key_head = h / (p.heads / p.key_heads);
    const int64_t width = p.key_width;
    float* state = p.state + task * width * p.value_width;
    if (p.fresh && p.fresh[b]) fill_row(width * p.value_width, 0, state);
    StepToken x{p.q.at(b, 0, key_head), p.k.at(b, 0, key_head), nullptr, 1, 0, 1, 0};
    if (p.decay == Decay::scalar) x.one_decay = std::exp(*p.log_decay.at(b, 0, h));
    if (p.decay == Decay::vector) exp_row(width, p.log_decay.at(b, 0, h), decays), x.decay = decays;
    if (p.beta.data) x.beta = *p.beta.at(b, 0, h);
    if (p.write.data) x.write = *p.write.at(b, 0, h);
    for (int64_t i = 0; i < width; ++i)
      x.read_own += p.scale * x.q[i] * x.k[i] * (p.bonus ? p.bonus[h * width + i] : 1);
    step_head(p, x, p.v.at(b, 0, h), state, p.y + task * p.value_width);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace weft::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace weft::kernels {

int64_t linear_attention_scratch(const LinearAttentionProblem& p) { return Workspace(p, nullptr).floats; }

WEFT_SIMD_DISPATCH(linear_attention_forward,
                   (const LinearAttentionProblem& p, float* scratch, int64_t begin, int64_t end),
                   (p, scratch, begin, end))
WEFT_SIMD_DISPATCH(linear_attention_step,
                   (const LinearAttentionProblem& p, float* decays, int64_t begin, int64_t end),
                   (p, decays, begin, end))

}  // namespace weft::kernels
#endif
