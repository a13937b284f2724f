// The recurrent matrix: copies in panels, and its gradient.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/rnn/kernel_cpu_matrix.cc"
#include "ops/simd/targets.h"
//
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
//
#include "ops/rnn/kernel.h"
#include "ops/rnn/pack-inl.h"
#include "ops/rnn/panel-inl.h"
#include "ops/simd/aligned.h"

#include <cstring>

HWY_BEFORE_NAMESPACE();
namespace weft::kernels::HWY_NAMESPACE {
namespace {

constexpr int64_t kPanelFloats = kRnnTokens * kRnnPanel;

void rnn_pack_forward(const RnnProblem& p, float* packed, int64_t begin, int64_t end) {
  const int64_t panels = rnn_panels(p.width);
  for (int64_t task = begin; task < end; ++task)
    pack_panel_transposed(p, task / panels / p.heads, task / panels % p.heads, task % panels,
                          packed + task * p.width * kRnnPanel);
}

// Up to kRnnPanel floats of a row, filled up with zeros.
void pack_row(const float* from, int64_t count, float* to) {
  const int64_t whole = count < kRnnPanel ? count : kRnnPanel;
  std::memcpy(to, from, static_cast<size_t>(whole) * sizeof(float));
  for (int64_t i = whole; i < kRnnPanel; ++i) to[i] = 0;
}

void rnn_pack_backward(const RnnProblem& p, float* packed, int64_t begin, int64_t end) {
  const int64_t panels = rnn_panels(p.width);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t head = task / panels, column = task % panels * kRnnPanel;
    float* to = packed + task * p.recurrent_gates * p.width * kRnnPanel;
    for (int64_t j = 0; j < p.recurrent_gates; ++j)
      for (int64_t out = 0; out < p.width; ++out, to += kRnnPanel)
        pack_row(p.recurrent + ((j * p.heads + head) * p.width + out) * p.width + column, p.width - column,
                 to);
  }
}

// h before row i of [B, T], of one head; null when it is zero.
const float* h_before(const RnnProblem& p, int64_t head, int64_t i) {
  if (p.starts && p.starts[i]) return nullptr;
  const int64_t b = i / p.tokens, t = i % p.tokens;
  if (t) return p.h + ((i - 1) * p.heads + head) * p.width;
  return p.initial ? p.initial + (b * p.heads + head) * p.width : nullptr;
}

// Token rows [first, first + kRnnTokens) of [B, T]; those behind the last are zeros.
void rnn_pack_before(const RnnMatrixGradient& g, int64_t begin, int64_t end) {
  const RnnProblem& p = g.gradient->forward;
  const int64_t blocks = rnn_token_blocks(p), panels = rnn_panels(p.width);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t head = task / blocks, first = task % blocks * kRnnTokens;
    float* const to = g.before + task * panels * kPanelFloats;
    for (int64_t i = 0; i < kRnnTokens; ++i) {
      const float* const h = first + i < p.batch * p.tokens ? h_before(p, head, first + i) : nullptr;
      for (int64_t panel = 0; panel < panels; ++panel) {
        float* const row = to + panel * kPanelFloats + i * kRnnPanel;
        if (h)
          pack_row(h + panel * kRnnPanel, p.width - panel * kRnnPanel, row);
        else
          std::memset(row, 0, kRnnPanel * sizeof(float));
      }
    }
  }
}

// Outputs [out, out + kRnnOutputs) of a gate and head for `count` token rows from `first`, as panels.
void pack_gate_rows(const RnnGradient& g, int64_t gate, int64_t head, int64_t out, int64_t first,
                    int64_t count, float* to) {
  const RnnProblem& p = g.forward;
  for (int64_t i = 0; i < count; ++i) {
    const float* const from = g.dgates + (((first + i) * p.gates + gate) * p.heads + head) * p.width + out;
    for (int64_t panel = 0; panel * kRnnPanel < kRnnOutputs && out + panel * kRnnPanel < p.width; ++panel)
      pack_row(from + panel * kRnnPanel, p.width - out - panel * kRnnPanel,
               to + panel * kPanelFloats + i * kRnnPanel);
  }
}

void rnn_backward_matrix(const RnnMatrixGradient& g, int64_t begin, int64_t end) {
  const RnnProblem& p = g.gradient->forward;
  const int64_t parts = rnn_output_blocks(p), panels = rnn_panels(p.width), rows = p.batch * p.tokens;
  const simd::AlignedFloats memory(static_cast<size_t>(kRnnOutputs / kRnnPanel * kPanelFloats));
  for (int64_t task = begin; task < end; ++task) {
    const int64_t matrix = task / parts, head = matrix % p.heads, out = task % parts * kRnnOutputs;
    const int64_t outputs = p.width - out < kRnnOutputs ? p.width - out : kRnnOutputs;
    float* const to = g.drecurrent + (matrix * p.width + out) * p.width;
    std::memset(to, 0, static_cast<size_t>(outputs * p.width) * sizeof(float));
    for (int64_t first = 0; first < rows; first += kRnnTokens) {
      const int64_t count = rows - first < kRnnTokens ? rows - first : kRnnTokens;
      pack_gate_rows(*g.gradient, matrix / p.heads, head, out, first, count, memory.get());
      const float* const before =
          g.before + (head * rnn_token_blocks(p) + first / kRnnTokens) * panels * kPanelFloats;
      for (int64_t panel = 0; panel < panels; ++panel)
        for (int64_t o = 0; o < outputs; o += kRnnPanel)
          panel_product(outputs - o < kRnnPanel ? outputs - o : kRnnPanel,
                        p.width - panel * kRnnPanel < kRnnPanel ? p.width - panel * kRnnPanel : kRnnPanel,
                        count, {memory.get() + o / kRnnPanel * kPanelFloats, 1, kRnnPanel},
                        before + panel * kPanelFloats, before + (panel + 1) * kPanelFloats,
                        to + o * p.width + panel * kRnnPanel, p.width);
    }
  }
}

}  // namespace
}  // namespace weft::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace weft::kernels {
WEFT_SIMD_DISPATCH(rnn_pack_forward, (const RnnProblem& p, float* packed, int64_t begin, int64_t end),
                   (p, packed, begin, end))
WEFT_SIMD_DISPATCH(rnn_pack_backward, (const RnnProblem& p, float* packed, int64_t begin, int64_t end),
                   (p, packed, begin, end))
WEFT_SIMD_DISPATCH(rnn_pack_before, (const RnnMatrixGradient& p, int64_t begin, int64_t end), (p, begin, end))
WEFT_SIMD_DISPATCH(rnn_backward_matrix, (const RnnMatrixGradient& p, int64_t begin, int64_t end),
                   (p, begin, end))
}  // namespace weft::kernels
#endif
