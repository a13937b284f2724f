// Gradients of linear attention on the CPU: the chunks of a head from last to first, everything but the
// states before the chunks and the values after the erase computed again.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/linear_attention/kernel_cpu_backward.cc"
#include "ops/simd/targets.h"

#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/linear_attention/chunk-inl.h"
#include "ops/linear_attention/kernel.h"

HWY_BEFORE_NAMESPACE();
namespace weft::kernels {
namespace HWY_NAMESPACE {

// A chunk in the backward: dy (row stride that of the workspace), the state before it (row stride V), and
// outputs of its first token.
struct ChunkGradients {
  const float* dy;
  const float* state;
  int64_t token_value, token_key;  // strides from token to token of [B, T, H, V] and [B, T, H, K]
  int64_t at;                      // (b T + t) H + h of the first token
};

// dvalue = what reaches the written values, through y and the state after; then through the triangular solve.
void value_gradients(const LinearAttentionProblem& p, const Chunk& c, Workspace& w, const ChunkGradients& x) {
  for (int64_t i = 0; i < c.rows; i += kProductRows) {
    const int64_t rows = std::min(kProductRows, c.rows - i);
    gemm(rows, p.value_width, c.rows - i, transposed(w.reads + i * w.pair_row + i, w.pair_row),
         x.dy + i * w.value_row, w.value_row, w.dvalue + i * w.value_row, w.value_row);
  }
  gemm(c.rows, p.value_width, p.key_width, plain(w.k_out, w.key_row), w.dstate, w.value_row, w.dvalue,
       w.value_row, {1, true});
  if (p.beta.data) solve_transposed(p, c, w, w.dvalue);
}

// dv, dwrite, and the matrices dreads and derases (the latter already times beta), with what dbeta gets from it.
void pair_gradients(const LinearAttentionProblem& p, const LinearAttentionGradients& g, const Chunk& c,
                    Workspace& w, const ChunkGradients& x) {
  lower_dots(c.rows, p.value_width, x.dy, w.value_row, w.value, w.value_row, w.dreads, w.pair_row);
  if (p.beta.data)
    lower_dots(c.rows, p.value_width, w.dvalue, w.value_row, w.value, w.value_row, w.derases, w.pair_row);
  for (int64_t r = 0; r < c.rows; ++r) {
    const float* dvalue = w.dvalue + r * w.value_row;
    const float* v = p.v.at(c.batch, c.begin + r, c.head);
    if (g.dv) scale_row(p.value_width, w.write[r], dvalue, g.dv + x.at * p.value_width + r * x.token_value);
    if (g.dwrite) g.dwrite[x.at + r * p.heads] = dot(p.value_width, dvalue, v);
    if (!p.beta.data) continue;
    float* derases = w.derases + r * w.pair_row;
    if (g.dbeta) g.dbeta[x.at + r * p.heads] = -dot(r, derases, w.erases + r * w.pair_row);
    scale_row(r, -w.beta[r], derases, derases);
  }
}

// dq_in, dk_in and dk_out: gradients that go through the states before and after the chunk. And the rest of dbeta:
// what a token recalls, k_in S, meets its dvalue in k_in . (S dvalue).
void state_gradients(const LinearAttentionProblem& p, const LinearAttentionGradients& g, const Chunk& c,
                     Workspace& w, const ChunkGradients& x) {
  transpose(p.key_width, p.value_width, w.dstate, w.value_row, w.flipped, w.key_row);
  gemm(c.rows, p.key_width, p.value_width, plain(w.value, w.value_row), w.flipped, w.key_row, w.dk_out,
       w.key_row);
  if (c.empty) {
    fill_row(c.rows * w.key_row, 0, w.dq_in);
    fill_row(c.rows * w.key_row, 0, w.dk_in);
    return;
  }
  transpose(p.key_width, p.value_width, x.state, p.value_width, w.flipped, w.key_row);
  gemm(c.rows, p.key_width, p.value_width, plain(x.dy, w.value_row), w.flipped, w.key_row, w.dq_in,
       w.key_row);
  if (!p.beta.data) return fill_row(c.rows * w.key_row, 0, w.dk_in);
  gemm(c.rows, p.key_width, p.value_width, plain(w.dvalue, w.value_row), w.flipped, w.key_row, w.dk_in,
       w.key_row);
  for (int64_t r = 0; r < c.rows; ++r) {
    float* dk_in = w.dk_in + r * w.key_row;
    if (g.dbeta) g.dbeta[x.at + r * p.heads] -= dot(p.key_width, w.k_in + r * w.key_row, dk_in);
    scale_row(p.key_width, -w.beta[r], dk_in, dk_in);
  }
}

// drows = M b and dcolumns = M' a for a lower triangular M [n, n], without the blocks of zeros above the diagonal.
void lower_products(int64_t n, int64_t width, const float* m, int64_t m_row, const float* b, const float* a,
                    int64_t row, float* drows, float* dcolumns) {
  for (int64_t i = 0; i < n; i += kProductRows) {
    const int64_t rows = std::min(kProductRows, n - i);
    gemm(rows, width, i + rows, plain(m + i * m_row, m_row), b, row, drows + i * row, row);
    gemm(rows, width, n - i, transposed(m + i * m_row + i, m_row), a + i * row, row, dcolumns + i * row, row);
  }
}

// Gradients through the strict lower triangles, no or scalar decay: products with the decayed matrices.
void row_gradients(const LinearAttentionProblem& p, const Chunk& c, Workspace& w) {
  const int64_t n = c.rows, row = w.key_row;
  decay_pairs(p, c, w, p.bonus, w.dreads);
  lower_products(n, p.key_width, w.dreads, w.pair_row, w.k, w.q, row, w.dq_reads, w.dk_reads);
  if (!p.beta.data) return;
  decay_pairs(p, c, w, false, w.derases);
  lower_products(n, p.key_width, w.derases, w.pair_row, w.k, w.k, row, w.drow_erases, w.dcolumn_erases);
}

// One block of pairs with vector decay: rows += row_decay * (M column_k), columns += column_decay * (M'
// rows).
void block_gradients(const LinearAttentionProblem& p, Workspace& w, int64_t base, int64_t mid, int64_t end,
                     const float* m, const float* rows, float* drows, float* dcolumns) {
  const int64_t row = w.key_row, height = end - mid, width = mid - base;
  const float* block = m + mid * w.pair_row + base;
  float* product = w.block_product;
  gemm(height, p.key_width, width, plain(block, w.pair_row), w.column_k, row, product, row);
  for (int64_t r = 0; r < height; ++r)
    multiply_add_row(p.key_width, w.row_decay + r * row, product + r * row, drows + (mid + r) * row);
  gemm(width, p.key_width, height, transposed(block, w.pair_row), rows, row, product, row);
  for (int64_t i = 0; i < width; ++i)
    multiply_add_row(p.key_width, w.column_decay + i * row, product + i * row, dcolumns + (base + i) * row);
}

// The same with vector decay, block by block.
void vector_row_gradients(const LinearAttentionProblem& p, const Chunk& c, Workspace& w) {
  for (float* m : {w.dq_reads, w.dk_reads, w.drow_erases, w.dcolumn_erases})
    fill_row(c.rows * w.key_row, 0, m);
  for_each_block(c.rows, [&](int64_t base, int64_t mid, int64_t end) {
    decay_block(p, c, w, base, mid, end);
    block_gradients(p, w, base, mid, end, w.dreads, w.row_q, w.dq_reads, w.dk_reads);
    if (p.beta.data)
      block_gradients(p, w, base, mid, end, w.derases, w.row_k, w.drow_erases, w.dcolumn_erases);
  });
}

// For every token what the decays up to its read (row_q), up to its write (row_k) and from it to the chunk's
// end (column_k) get; key_sum what the whole chunk's decay of the state gets. A scalar's are summed over K,
// into column 0.
void decay_terms(const LinearAttentionProblem& p, const Chunk& c, Workspace& w, const ChunkGradients& x) {
  const int64_t width = p.key_width;
  const float* all = w.decay_in + (c.rows - 1) * w.key_row;
  for (int64_t d = 0; d < width; ++d)
    w.key_sum[d] =
        c.empty ? 0 : all[d] * dot(p.value_width, x.state + d * p.value_width, w.dstate + d * w.value_row);
  for (int64_t r = 0; r < c.rows; ++r) {
    const int64_t at = r * w.key_row;
    multiply_row(width, w.q + at, w.dq_reads + at, w.row_q + at);
    multiply_add_row(width, w.dq_in + at, w.q_in + at, w.row_q + at);
    multiply_row(width, w.dk_out + at, w.k_out + at, w.column_k + at);
    for (int64_t d = at; d < at + width; ++d) w.row_k[d] = w.dk_in[d] * w.k_in[d] - w.k[d] * w.dk_reads[d];
    for (int64_t d = at; p.beta.data && d < at + width; ++d)
      w.row_k[d] += w.k[d] * (w.drow_erases[d] - w.dcolumn_erases[d]);
  }
  if (p.decay == Decay::vector) return;
  w.key_sum[0] = sum_row(width, w.key_sum);
  for (float* m : {w.row_q, w.row_k, w.column_k})
    for (int64_t r = 0; r < c.rows; ++r) m[r * w.key_row] = sum_row(width, m + r * w.key_row);
}

// A token's log decay is in the decays to the reads and writes from it on, and in those from the tokens
// before it to the end. dreads' and derases' diagonals have no decay and are not in the terms.
void decay_gradients(const LinearAttentionProblem& p, const Chunk& c, Workspace& w, const ChunkGradients& x,
                     float* out) {
  decay_terms(p, c, w, x);
  const int64_t width = p.decay == Decay::vector ? p.key_width : 1, token = p.heads * width;
  out += x.at * width;
  float* sum = w.key_sum;
  for (int64_t r = c.rows - 1; r >= 0; --r) {
    add_row(width, 1, w.row_k + r * w.key_row, sum);
    if (!p.bonus) add_row(width, 1, w.row_q + r * w.key_row, sum);
    std::copy(sum, sum + width, out + r * token);
    if (p.bonus) add_row(width, 1, w.row_q + r * w.key_row, sum);
  }
  fill_row(width, 0, sum);
  for (int64_t r = 0; r < c.rows; ++r) {
    add_row(width, 1, sum, out + r * token);
    add_row(width, 1, w.column_k + r * w.key_row, sum);
  }
}

// The diagonal of `reads`, in row_sum before: q and k of the same token, undecayed. With a bonus its weight
// is the bonus, and dreads' diagonal is the gradient of that weight.
void diagonal_gradients(const LinearAttentionProblem& p, const LinearAttentionGradients& g, const Chunk& c,
                        Workspace& w, const ChunkGradients& x) {
  const int64_t width = p.key_width;
  const float* u = p.bonus ? p.bonus + c.head * width : nullptr;
  for (int64_t r = 0; r < c.rows; ++r) {
    const float weight = w.row_sum[r];
    const int64_t at = r * w.key_row;
    for (int64_t d = 0; d < width; ++d) {
      w.dq_reads[at + d] += weight * w.k[at + d] * (u ? u[d] : 1);
      w.dk_reads[at + d] += weight * w.q[at + d] * (u ? u[d] : 1);
    }
    if (!p.bonus) continue;
    float* dbonus = g.dbonus ? g.dbonus + (c.batch * p.heads + c.head) * width : nullptr;
    for (int64_t d = 0; dbonus && d < width; ++d) dbonus[d] += weight * w.q[at + d] * w.k[at + d];
    if (g.dv)
      add_row(p.value_width, w.bonus[r], x.dy + r * w.value_row,
              g.dv + x.at * p.value_width + r * x.token_value);
  }
}

void store_gradients(const LinearAttentionProblem& p, const LinearAttentionGradients& g, const Chunk& c,
                     const Workspace& w, const ChunkGradients& x) {
  const int64_t width = p.key_width;
  for (int64_t r = 0; r < c.rows; ++r) {
    const int64_t at = r * w.key_row, to = x.at * width + r * x.token_key;
    for (int64_t d = 0; g.dq && d < width; ++d)
      g.dq[to + d] = p.scale * (w.dq_reads[at + d] + w.dq_in[at + d] * w.decay_read[at + d]);
    if (!g.dk) continue;
    for (int64_t d = 0; d < width; ++d)
      g.dk[to + d] =
          w.dk_reads[at + d] + w.dk_in[at + d] * w.decay_in[at + d] + w.dk_out[at + d] * w.decay_out[at + d];
    for (int64_t d = 0; p.beta.data && d < width; ++d)
      g.dk[to + d] += w.drow_erases[at + d] + w.dcolumn_erases[at + d];
  }
}

// dstate = decays over the chunk * dstate + q_in' dy - (beta k_in)' dvalue, now of the state before the
// chunk.
void retreat_state(const LinearAttentionProblem& p, const Chunk& c, Workspace& w, const ChunkGradients& x) {
  const float* all = w.decay_in + (c.rows - 1) * w.key_row;
  for (int64_t d = 0; p.decay != Decay::none && d < p.key_width; ++d)
    scale_row(p.value_width, all[d], w.dstate + d * w.value_row, w.dstate + d * w.value_row);
  gemm(p.key_width, p.value_width, c.rows, transposed(w.q_in, w.key_row), x.dy, w.value_row, w.dstate,
       w.value_row, {1, true});
  if (!p.beta.data) return;
  for (int64_t r = 0; r < c.rows; ++r)
    scale_row(p.key_width, w.beta[r], w.k_in + r * w.key_row, w.k_in + r * w.key_row);
  gemm(p.key_width, p.value_width, c.rows, transposed(w.k_in, w.key_row), w.dvalue, w.value_row, w.dstate,
       w.value_row, {-1, true});
}

void chunk_backward(const LinearAttentionProblem& p, const LinearAttentionGradients& g, const Chunk& c,
                    Workspace& w, const ChunkGradients& x) {
  load_chunk(p, c, w);
  chunk_decays(p, c, w);
  chunk_pairs(p, c, w);
  if (p.beta.data)
    load_rows(p, c, p.values, w.value, w.value_row);
  else
    chunk_values(p, c, w, x.state, p.value_width);
  if (p.bonus) chunk_bonus(p, c, w);
  value_gradients(p, c, w, x);
  pair_gradients(p, g, c, w, x);
  state_gradients(p, g, c, w, x);
  for (int64_t r = 0; r < c.rows; ++r)
    w.row_sum[r] = p.bonus ? dot(p.value_width, x.dy + r * w.value_row, p.v.at(c.batch, c.begin + r, c.head))
                           : w.dreads[r * w.pair_row + r];
  keep_lower(c.rows, w.dreads, w.pair_row, true);
  if (p.beta.data) keep_lower(c.rows, w.derases, w.pair_row, true);
  if (p.decay == Decay::vector)
    vector_row_gradients(p, c, w);
  else
    row_gradients(p, c, w);
  if (g.dlog_decay) decay_gradients(p, c, w, x, g.dlog_decay);
  diagonal_gradients(p, g, c, w, x);
  store_gradients(p, g, c, w, x);
  if (c.empty)
    fill_row(p.key_width * w.value_row, 0, w.dstate);
  else
    retreat_state(p, c, w, x);
}

void linear_attention_backward(const LinearAttentionProblem& p, const LinearAttentionGradients& g,
                               float* scratch, int64_t begin, int64_t end) {
  Workspace w(p, scratch);
  const int64_t state_size = p.key_width * p.value_width;
  for (int64_t task = begin; task < end; ++task) {
    for (int64_t d = 0; d < p.key_width; ++d) {
      const float* from = g.dstate ? g.dstate + task * state_size + d * p.value_width : nullptr;
      if (from)
        std::copy(from, from + p.value_width, w.dstate + d * w.value_row);
      else
        fill_row(p.value_width, 0, w.dstate + d * w.value_row);
    }
    if (g.dbonus) fill_row(p.key_width, 0, g.dbonus + task * p.key_width);
    for (int64_t index = chunk_count(p, task) - 1; index >= 0; --index) {
      const Chunk c = chunk_at(p, task, index, index == 0);
      const int64_t at = (c.batch * p.tokens + c.begin) * p.heads + c.head;
      load_rows(p, c, g.dy, w.rows, w.value_row);
      chunk_backward(
          p, g, c, w,
          {w.rows, saved_state(p, task, index), p.heads * p.value_width, p.heads * p.key_width, at});
    }
    for (int64_t d = 0; g.dinitial && d < p.key_width; ++d)
      std::copy(w.dstate + d * w.value_row, w.dstate + d * w.value_row + p.value_width,
                g.dinitial + task * state_size + d * p.value_width);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace weft::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace weft::kernels {

WEFT_SIMD_DISPATCH(linear_attention_backward,
                   (const LinearAttentionProblem& p, const LinearAttentionGradients& g, float* scratch,
                    int64_t begin, int64_t end),
                   (p, g, scratch, begin, end))

}  // namespace weft::kernels
#endif
