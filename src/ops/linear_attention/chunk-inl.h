// What forward and backward of linear attention both need of one chunk: decays, pair matrices, written
// values. README.md has the derivation. Every decay is the exponential of a sum of log decays over a range of
// tokens, summed from one of its ends: no differences of sums, so no exponent is positive, nothing cancels
// and minus infinity is welcome.
#if defined(WEFT_OPS_LINEAR_ATTENTION_CHUNK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEFT_OPS_LINEAR_ATTENTION_CHUNK_INL_H_
#undef WEFT_OPS_LINEAR_ATTENTION_CHUNK_INL_H_
#else
#define WEFT_OPS_LINEAR_ATTENTION_CHUNK_INL_H_
#endif

#include <algorithm>
#include <cmath>

#include "ops/linear_attention/workspace.h"
#include "ops/simd/gemm-inl.h"
#include "ops/simd/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weft::kernels {
namespace HWY_NAMESPACE {
using namespace weft::simd::HWY_NAMESPACE;

// Tokens [begin, begin + rows) of value head `head` of sequence `batch`.
struct Chunk {
  int64_t batch, head, key_head, begin, rows;
  bool empty;  // the state before it is zero
};

// Row blocks of products with a lower triangular matrix, and of the triangular solve.
constexpr int64_t kProductRows = 16, kSolveRows = 8;

inline void load_chunk(const LinearAttentionProblem& p, const Chunk& c, Workspace& w) {
  for (int64_t r = 0; r < c.rows; ++r) {
    const int64_t t = c.begin + r;
    const float* k = p.k.at(c.batch, t, c.key_head);
    std::copy(k, k + p.key_width, w.k + r * w.key_row);
    if (p.q.data) scale_row(p.key_width, p.scale, p.q.at(c.batch, t, c.key_head), w.q + r * w.key_row);
    w.beta[r] = p.beta.data ? *p.beta.at(c.batch, t, c.head) : 0;
    w.write[r] = p.write.data ? *p.write.at(c.batch, t, c.head) : 1;
  }
}

// log_decay of token c.begin + r: one value, or K of them.
inline const float* log_decay(const LinearAttentionProblem& p, const Chunk& c, int64_t r) {
  return p.log_decay.at(c.batch, c.begin + r, c.head);
}

// to[r] = exp of the sum of log decays over [first, r] for the rows r in [first, end): vector decay.
inline void decays_from(const LinearAttentionProblem& p, const Chunk& c, int64_t first, int64_t end,
                        float* sum, float* to, int64_t to_row) {
  fill_row(p.key_width, 0, sum);
  for (int64_t r = first; r < end; ++r, to += to_row) {
    add_row(p.key_width, 1, log_decay(p, c, r), sum);
    exp_row(p.key_width, sum, to);
  }
}

// to[r - first] = exp of the sum of log decays over (r, end) for the rows r in [first, end): vector decay.
inline void decays_until(const LinearAttentionProblem& p, const Chunk& c, int64_t first, int64_t end,
                         float* sum, float* to, int64_t to_row) {
  fill_row(p.key_width, 0, sum);
  fill_row(p.key_width, 1, to + (end - 1 - first) * to_row);
  for (int64_t r = end - 2; r >= first; --r) {
    add_row(p.key_width, 1, log_decay(p, c, r + 1), sum);
    exp_row(p.key_width, sum, to + (r - first) * to_row);
  }
}

inline void scalar_chunk_decays(const LinearAttentionProblem& p, const Chunk& c, Workspace& w) {
  float sum = 0;
  for (int64_t r = 0; r < c.rows; ++r) w.row_sum[r] = sum += *log_decay(p, c, r);
  exp_row(c.rows, w.row_sum, w.row_sum);
  for (int64_t r = 0; r < c.rows; ++r) fill_row(p.key_width, w.row_sum[r], w.decay_in + r * w.key_row);
  w.row_sum[c.rows - 1] = sum = 0;
  for (int64_t r = c.rows - 2; r >= 0; --r) w.row_sum[r] = sum += *log_decay(p, c, r + 1);
  exp_row(c.rows, w.row_sum, w.row_sum);
  for (int64_t r = 0; r < c.rows; ++r) fill_row(p.key_width, w.row_sum[r], w.decay_out + r * w.key_row);
}

// The decays between a token and the chunk's two ends, and q and k times them.
inline void chunk_decays(const LinearAttentionProblem& p, const Chunk& c, Workspace& w) {
  fill_row(p.key_width, 1, w.decay_in - w.key_row);
  if (p.decay == Decay::vector) {
    decays_from(p, c, 0, c.rows, w.key_sum, w.decay_in, w.key_row);
    decays_until(p, c, 0, c.rows, w.key_sum, w.decay_out, w.key_row);
  } else if (p.decay == Decay::scalar) {
    scalar_chunk_decays(p, c, w);
  } else {
    fill_row(c.rows * w.key_row, 1, w.decay_in);
    fill_row(c.rows * w.key_row, 1, w.decay_out);
  }
  for (int64_t r = 0; r < c.rows; ++r) {
    const int64_t at = r * w.key_row;
    if (p.q.data) multiply_row(p.key_width, w.q + at, w.decay_read + at, w.q_in + at);
    multiply_row(p.key_width, w.k + at, w.decay_in + at, w.k_in + at);
    multiply_row(p.key_width, w.k + at, w.decay_out + at, w.k_out + at);
  }
}

// C [n, n] = A B' on and below the diagonal; a little above it is written too.
inline void lower_dots(int64_t n, int64_t depth, const float* a, int64_t a_row, const float* b, int64_t b_row,
                       float* c, int64_t c_row) {
  for (int64_t r = 0; r < n; r += 4) {
    const int64_t rows = std::min<int64_t>(4, n - r);
    dots(rows, r + rows, depth, a + r * a_row, a_row, b, b_row, c + r * c_row, c_row);
  }
}

// Zeroes c[r, i] for i > r, and the diagonal too when `strict`.
inline void keep_lower(int64_t n, float* c, int64_t c_row, bool strict) {
  for (int64_t r = 0; r < n; ++r)
    for (int64_t i = strict ? r : r + 1; i < n; ++i) c[r * c_row + i] = 0;
}

// pair_decay[r, i] = exp of the sum of log decays over (i, r], i <= r: scalar decay.
inline void scalar_pair_decays(const LinearAttentionProblem& p, const Chunk& c, Workspace& w) {
  for (int64_t r = 0; r < c.rows; ++r) {
    const float g = *log_decay(p, c, r);
    for (int64_t i = 0; i < r; ++i) w.log_sum[i] += g;
    w.log_sum[r] = 0;
    exp_row(r + 1, w.log_sum, w.pair_decay + r * w.pair_row);
  }
}

// Multiplies the pairs (r, i) of a lower triangular matrix with their decay; `before`: r's own decay left
// out.
inline void decay_pairs(const LinearAttentionProblem& p, const Chunk& c, const Workspace& w, bool before,
                        float* pairs) {
  if (p.decay != Decay::scalar) return;
  for (int64_t r = before ? 1 : 0; r < c.rows; ++r)
    multiply_row_in_place(before ? r : r + 1, w.pair_decay + (before ? r - 1 : r) * w.pair_row,
                          pairs + r * w.pair_row);
}

// With vector decay the strict lower triangle is cut into square blocks, the largest half the chunk: rows
// [mid, end) against columns [base, mid). Both sides are decayed to the border between mid - 1 and mid.
template <class Body>
HWY_INLINE void for_each_block(int64_t n, const Body& body) {
  for (int64_t half = 1; half < n; half *= 2)
    for (int64_t base = 0; base + half < n; base += 2 * half)
      body(base, base + half, std::min(base + 2 * half, n));
}

// Fills row_decay, column_decay, row_q, row_k and column_k of one block.
inline void decay_block(const LinearAttentionProblem& p, const Chunk& c, Workspace& w, int64_t base,
                        int64_t mid, int64_t end) {
  const int64_t width = p.key_width, row = w.key_row;
  if (p.bonus) {
    fill_row(width, 1, w.row_decay);
    decays_from(p, c, mid, end - 1, w.key_sum, w.row_decay + row, row);
  } else {
    decays_from(p, c, mid, end, w.key_sum, w.row_decay, row);
  }
  decays_until(p, c, base, mid, w.key_sum, w.column_decay, row);
  for (int64_t r = 0; r < end - mid; ++r) {
    if (p.q.data) multiply_row(width, w.q + (mid + r) * row, w.row_decay + r * row, w.row_q + r * row);
    if (p.beta.data) multiply_row(width, w.k + (mid + r) * row, w.row_decay + r * row, w.row_k + r * row);
  }
  for (int64_t i = 0; i < mid - base; ++i)
    multiply_row(width, w.k + (base + i) * row, w.column_decay + i * row, w.column_k + i * row);
}

inline void vector_pairs(const LinearAttentionProblem& p, const Chunk& c, Workspace& w) {
  const int64_t row = w.key_row;
  for_each_block(c.rows, [&](int64_t base, int64_t mid, int64_t end) {
    decay_block(p, c, w, base, mid, end);
    const auto block = [&](const float* rows, float* pairs) {
      dots(end - mid, mid - base, p.key_width, rows, row, w.column_k, row, pairs + mid * w.pair_row + base,
           w.pair_row);
    };
    if (p.q.data) block(w.row_q, w.reads);
    if (p.beta.data) block(w.row_k, w.erases);
  });
  for (int64_t r = 0; p.q.data && r < c.rows; ++r)
    w.reads[r * w.pair_row + r] = dot(p.key_width, w.q + r * row, w.k + r * row);
}

// The matrices reads, erases and system.
inline void chunk_pairs(const LinearAttentionProblem& p, const Chunk& c, Workspace& w) {
  const bool before = p.bonus;
  if (p.decay == Decay::scalar) scalar_pair_decays(p, c, w);
  if (p.decay == Decay::vector) {
    vector_pairs(p, c, w);
  } else {
    if (p.q.data) lower_dots(c.rows, p.key_width, w.q, w.key_row, w.k, w.key_row, w.reads, w.pair_row);
    if (p.beta.data) lower_dots(c.rows, p.key_width, w.k, w.key_row, w.k, w.key_row, w.erases, w.pair_row);
    if (p.q.data) decay_pairs(p, c, w, before, w.reads);
    if (p.beta.data) decay_pairs(p, c, w, false, w.erases);
  }
  if (p.q.data) keep_lower(c.rows, w.reads, w.pair_row, before);
  if (!p.beta.data) return;
  keep_lower(c.rows, w.erases, w.pair_row, true);
  for (int64_t r = 0; r < c.rows; ++r)
    scale_row(c.rows, w.beta[r], w.erases + r * w.pair_row, w.system + r * w.pair_row);
}

// value = (I + system)^-1 value
inline void solve(const LinearAttentionProblem& p, const Chunk& c, const Workspace& w, float* value) {
  const int64_t row = w.value_row;
  for (int64_t r0 = 0; r0 < c.rows; r0 += kSolveRows) {
    const int64_t r1 = std::min(r0 + kSolveRows, c.rows);
    if (r0 > 0)
      gemm(r1 - r0, p.value_width, r0, plain(w.system + r0 * w.pair_row, w.pair_row), value, row,
           value + r0 * row, row, {-1, true});
    for (int64_t r = r0; r < r1; ++r)
      for (int64_t i = r0; i < r; ++i)
        add_row(p.value_width, -w.system[r * w.pair_row + i], value + i * row, value + r * row);
  }
}

// value = (I + system)'^-1 value
inline void solve_transposed(const LinearAttentionProblem& p, const Chunk& c, const Workspace& w,
                             float* value) {
  const int64_t row = w.value_row;
  for (int64_t r0 = (c.rows - 1) / kSolveRows * kSolveRows; r0 >= 0; r0 -= kSolveRows) {
    const int64_t r1 = std::min(r0 + kSolveRows, c.rows);
    if (r1 < c.rows)
      gemm(r1 - r0, p.value_width, c.rows - r1, transposed(w.system + r1 * w.pair_row + r0, w.pair_row),
           value + r1 * row, row, value + r0 * row, row, {-1, true});
    for (int64_t r = r1 - 1; r >= r0; --r)
      for (int64_t i = r0; i < r; ++i)
        add_row(p.value_width, -w.system[r * w.pair_row + i], value + r * row, value + i * row);
  }
}

// The matrices value and recalled, from the state before the chunk.
inline void chunk_values(const LinearAttentionProblem& p, const Chunk& c, Workspace& w, const float* state,
                         int64_t state_row) {
  const bool recall = p.beta.data && !c.empty;
  if (recall)
    gemm(c.rows, p.value_width, p.key_width, plain(w.k_in, w.key_row), state, state_row, w.recalled,
         w.value_row);
  else
    fill_row(c.rows * w.value_row, 0, w.recalled);
  for (int64_t r = 0; r < c.rows; ++r) {
    float* value = w.value + r * w.value_row;
    scale_row(p.value_width, w.write[r], p.v.at(c.batch, c.begin + r, c.head), value);
    if (recall) add_row(p.value_width, -w.beta[r], w.recalled + r * w.value_row, value);
  }
  if (p.beta.data) solve(p, c, w, w.value);
}

// bonus[r] = sum_d q u k of token r, the weight of its own value in a read before the write.
inline void chunk_bonus(const LinearAttentionProblem& p, const Chunk& c, Workspace& w) {
  const float* u = p.bonus + c.head * p.key_width;
  for (int64_t r = 0; r < c.rows; ++r) {
    multiply_row(p.key_width, u, w.k + r * w.key_row, w.key_sum);
    w.bonus[r] = dot(p.key_width, w.q + r * w.key_row, w.key_sum);
  }
}

// state = decays over the chunk * state + k_out' value
inline void advance_state(const LinearAttentionProblem& p, const Chunk& c, const Workspace& w, float* state) {
  const float* all = w.decay_in + (c.rows - 1) * w.key_row;
  if (!c.empty && p.decay != Decay::none)
    for (int64_t d = 0; d < p.key_width; ++d)
      scale_row(p.value_width, all[d], state + d * w.value_row, state + d * w.value_row);
  gemm(p.key_width, p.value_width, c.rows, transposed(w.k_out, w.key_row), w.value, w.value_row, state,
       w.value_row, {1, !c.empty});
}

// The rows of a chunk in a [B, T, H, V] tensor, to and from.
inline void store_rows(const LinearAttentionProblem& p, const Chunk& c, const float* from, int64_t from_row,
                       float* to) {
  to += ((c.batch * p.tokens + c.begin) * p.heads + c.head) * p.value_width;
  for (int64_t r = 0; r < c.rows; ++r)
    std::copy(from + r * from_row, from + r * from_row + p.value_width, to + r * p.heads * p.value_width);
}

inline void load_rows(const LinearAttentionProblem& p, const Chunk& c, const float* from, float* to,
                      int64_t to_row) {
  from += ((c.batch * p.tokens + c.begin) * p.heads + c.head) * p.value_width;
  for (int64_t r = 0; r < c.rows; ++r, from += p.heads * p.value_width)
    std::copy(from, from + p.value_width, to + r * to_row);
}

// The chunks of one task, first to last, or last to first.
inline Chunk chunk_at(const LinearAttentionProblem& p, int64_t task, int64_t index, bool first) {
  const int64_t b = task / p.heads, h = task % p.heads;
  const int64_t at = p.chunk_offset[b] + index;
  const bool empty = p.fresh[at] || (first && !p.initial_state);
  return {b,    h, h / (p.heads / p.key_heads), p.chunk_begin[at], p.chunk_begin[at + 1] - p.chunk_begin[at],
          empty};
}

inline int64_t chunk_count(const LinearAttentionProblem& p, int64_t task) {
  const int64_t b = task / p.heads;
  return p.chunk_offset[b + 1] - p.chunk_offset[b] - 1;
}

// Where the state before chunk `index` is saved.
inline float* saved_state(const LinearAttentionProblem& p, int64_t task, int64_t index) {
  const int64_t b = task / p.heads, h = task % p.heads;
  return p.states + ((p.chunk_offset[b] - b + index) * p.heads + h) * p.key_width * p.value_width;
}

}  // namespace HWY_NAMESPACE
}  // namespace weft::kernels
HWY_AFTER_NAMESPACE();

#endif  // WEFT_OPS_LINEAR_ATTENTION_CHUNK_INL_H_
