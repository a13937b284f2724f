// The scratch memory of one thread, cut into the matrices of one chunk. C rows of a chunk, K and V widths;
// every row stride is a multiple of 16 floats.
#pragma once

#include <cstdint>

#include "ops/linear_attention/kernel.h"

namespace weft::kernels {

struct Workspace {
  int64_t key_row = 0, value_row = 0, pair_row = 0;  // row strides of [., K], [., V] and [., C] matrices

  // [C, K]
  float *q = nullptr, *k = nullptr;  // scale * q, and k
  float* decay_in = nullptr;         // from the chunk's first state to token r, r's decay included
  float* decay_read = nullptr;       // the same for the read: r's decay left out when the read comes first
  float* decay_out = nullptr;        // from token r to the chunk's end
  float *q_in = nullptr, *k_in = nullptr, *k_out = nullptr;  // q decay_read, k decay_in, k decay_out
  float *dq_in = nullptr, *dk_in = nullptr, *dk_out = nullptr;
  // Gradients through the pair matrices, of q and k in `reads` and of row and column in `erases`.
  float *dq_reads = nullptr, *dk_reads = nullptr, *drow_erases = nullptr, *dcolumn_erases = nullptr;
  // One block of pairs with vector decay: decays of its rows and columns, and the rows times them.
  float *row_decay = nullptr, *column_decay = nullptr, *row_q = nullptr, *row_k = nullptr,
        *column_k = nullptr;
  float* block_product = nullptr;
  float* key_sum = nullptr;  // [K]
  // [C, V]
  float* value = nullptr;     // what is written: v weighted, less what the erase takes out
  float* recalled = nullptr;  // k_in S
  float* dvalue = nullptr;
  float* rows = nullptr;  // y, or its gradient; outside, rows of a head lie too far apart for a cache
  // [C, C]: reads[r, i] is how much of value i reaches y of r, erases[r, i] how much of it k of r recalls,
  // and `system` that times beta of r.
  float *reads = nullptr, *erases = nullptr, *system = nullptr, *pair_decay = nullptr, *dreads = nullptr,
        *derases = nullptr;
  // [C]
  float *beta = nullptr, *write = nullptr, *bonus = nullptr, *log_sum = nullptr, *row_sum = nullptr;
  float *state = nullptr, *dstate = nullptr;  // [K, V]
  float* flipped = nullptr;                   // [V, K]

  int64_t floats = 0;

  // With a null `memory` only `floats` is found.
  Workspace(const LinearAttentionProblem& p, float* memory) {
    // Rows that are 256 bytes or a multiple apart would share few sets of a first-level cache.
    const auto round = [](int64_t n) { return (n + 15) / 16 * 16 + (n % 64 == 0 ? 16 : 0); };
    key_row = round(p.key_width), value_row = round(p.value_width), pair_row = round(p.chunk);
    const auto take = [&](int64_t n) {
      float* at = memory ? memory + floats : nullptr;
      floats += n;
      return at;
    };
    for (float** m : {&q, &k, &decay_out, &q_in, &k_in, &k_out, &dq_in, &dk_in, &dk_out, &dq_reads, &dk_reads,
                      &drow_erases, &dcolumn_erases, &row_decay, &column_decay, &row_q, &row_k, &column_k,
                      &block_product})
      *m = take(p.chunk * key_row);
    // One more row, of ones, before the first: the decays of a read before the write are those of the row
    // before.
    float* decays = take((p.chunk + 1) * key_row);
    decay_in = decays ? decays + key_row : nullptr;
    decay_read = p.bonus ? decays : decay_in;
    key_sum = take(key_row);
    for (float** m : {&value, &recalled, &dvalue, &rows}) *m = take(p.chunk * value_row);
    for (float** m : {&reads, &erases, &system, &pair_decay, &dreads, &derases})
      *m = take(p.chunk * pair_row);
    for (float** m : {&beta, &write, &bonus, &log_sum, &row_sum}) *m = take(pair_row);
    for (float** m : {&state, &dstate}) *m = take(p.key_width * value_row);
    flipped = take(p.value_width * key_row);
  }
};

}  // namespace weft::kernels
