// Shapes and masks for the test and the benchmark of attention.
#pragma once

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <string>
#include <vector>

#include "ops/attention/attention.h"

namespace weft::ops {

struct AttentionCase {
  std::string name;
  int64_t batch, queries, keys, heads, key_heads, key_width, value_width;
  bool causal = true;
  int64_t window = 0, sinks = 0;
  int64_t segments = 1;   // documents of about equal length, each with positions from 0
  bool shuffled = false;  // keys in random slots, one in eight of them empty
  double scale = 0;

  // Of the forward if every key were seen.
  int64_t flops() const { return 2 * batch * heads * queries * keys * (key_width + value_width); }
  int64_t bytes(int64_t element_bytes) const {
    const int64_t key_floats = keys * key_heads * (key_width + value_width);
    return batch * (queries * heads * (key_width + value_width) + key_floats) * element_bytes;
  }
};

struct AttentionBounds {
  double fp32 = 1e-5;
  double half = 2e-2;
};

// The mask of a case; positions and segments only where it needs them.
inline Mask mask_of(const AttentionCase& c) {
  Mask mask{.causal = c.causal, .window = c.window, .sinks = c.sinks};
  const auto document = [&](int64_t count) {
    return (at::arange(count) * c.segments).floor_divide(std::max<int64_t>(count, 1));  // [count]
  };
  const auto place = [&](const at::Tensor& documents) {  // position inside the document
    const auto same = documents.unsqueeze(0) == documents.unsqueeze(1);
    return same.tril(-1).sum(1);
  };
  if (c.segments > 1) {
    const auto q = document(c.queries), k = document(c.keys);
    mask.q_segments = q.expand({c.batch, c.queries}).contiguous();
    mask.k_segments = k.expand({c.batch, c.keys}).contiguous();
    mask.q_positions = place(q).expand({c.batch, c.queries}).contiguous();
    mask.k_positions = place(k).expand({c.batch, c.keys}).contiguous();
  }
  if (c.shuffled) {
    auto generator = at::make_generator<at::CPUGeneratorImpl>(17);
    std::vector<at::Tensor> rows;
    for (int64_t b = 0; b < c.batch; ++b)
      rows.push_back(at::randperm(c.keys, generator, at::TensorOptions().dtype(at::kLong)));
    const auto slots = at::stack(rows);
    const auto positions = mask.k_positions.defined() ? mask.k_positions.gather(1, slots) : slots;
    if (mask.k_segments.defined()) mask.k_segments = mask.k_segments.gather(1, slots);
    mask.k_positions = at::where(slots.remainder(8) == 3, -1, positions);
  }
  return mask;
}

inline const std::vector<AttentionCase>& attention_cases() {
  static const std::vector<AttentionCase> cases = {
      {"no queries", 1, 0, 5, 2, 1, 8, 8},
      {"no keys", 2, 3, 0, 2, 1, 8, 4},
      {"one token", 1, 1, 1, 1, 1, 3, 2},
      {"decode", 3, 1, 129, 4, 2, 16, 24},
      {"decode, all heads on one key head", 1, 1, 200, 12, 1, 64, 64},
      {"decode in a ring", 2, 1, 70, 2, 1, 20, 33, true, 32, 2, 1, true},
      {"one block", 1, 64, 64, 1, 1, 32, 32},
      {"one less", 3, 63, 63, 2, 2, 17, 31},
      {"one more", 1, 65, 65, 3, 1, 33, 16},
      {"prefix", 1, 70, 200, 4, 2, 16, 16},
      {"more queries than keys", 1, 90, 50, 2, 1, 8, 8},
      {"long", 1, 500, 500, 1, 1, 16, 16},
      {"wide heads", 1, 20, 90, 2, 1, 256, 200},
      {"narrow heads", 1, 70, 70, 2, 2, 1, 1},
      {"window", 2, 150, 150, 2, 1, 16, 16, true, 20},
      {"window of one", 1, 80, 80, 2, 1, 16, 16, true, 1},
      {"window with sinks", 1, 300, 300, 2, 1, 16, 16, true, 30, 4},
      {"window, not causal", 1, 90, 140, 2, 1, 16, 16, false, 25, 3},
      {"cross", 2, 37, 101, 4, 2, 16, 24, false},
      {"segments", 2, 200, 200, 2, 1, 16, 16, true, 0, 0, 5},
      {"segments with window and sinks", 1, 300, 300, 2, 2, 16, 16, true, 12, 2, 3},
      {"cross between segments", 1, 130, 70, 2, 1, 16, 16, false, 0, 0, 3},
      {"ring", 2, 100, 160, 2, 1, 16, 16, true, 0, 0, 1, true},
      {"ring with window and segments", 1, 130, 150, 2, 1, 16, 16, true, 25, 3, 2, true},
      {"scale", 1, 40, 40, 1, 1, 8, 8, true, 0, 0, 1, false, 0.5}};
  return cases;
}

inline const std::vector<AttentionCase>& attention_bench_cases() {
  static const std::vector<AttentionCase> cases = {
      {"training", 2, 1024, 1024, 8, 8, 64, 64},
      {"long, grouped, window", 1, 4096, 4096, 8, 2, 64, 64, true, 1024, 4},
      {"prefill", 1, 512, 4096, 8, 2, 128, 128},
      {"decode", 1, 1, 8192, 16, 4, 128, 128}};
  return cases;
}

}  // namespace weft::ops
