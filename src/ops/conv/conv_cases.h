// Shapes, inputs, work and error bounds of the short convolution: one list for tests and benchmarks.
#pragma once

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <string>
#include <vector>

#include "ops/conv/conv.h"

namespace weft::ops {

struct ShortConvCase {
  std::string name;
  int64_t batch = 1, tokens = 1, channels = 1, width = 4;
  bool bias = false, silu = false, state = false;
  double starts = 0;  // chance that a document starts at a token; above 0 the first token starts one too

  double flops() const { return 2.0 * static_cast<double>(batch * tokens * channels * width); }
  // Of x and y, each touched once.
  double bytes(int64_t element_bytes) const {
    return 2.0 * static_cast<double>(batch * tokens * channels * element_bytes);
  }
};

// Largest error against fp64 divided by the largest magnitude of the tensor.
struct ShortConvBounds {
  double y, gradient;
};
inline ShortConvBounds short_conv_bounds(at::ScalarType type) {
  return type == at::kFloat ? ShortConvBounds{1e-5, 1e-5} : ShortConvBounds{2e-2, 2e-2};
}

inline ShortConv short_conv_inputs(const ShortConvCase& c, at::ScalarType type, uint64_t seed = 1) {
  at::manual_seed(seed);
  const auto normal = [&](at::IntArrayRef sizes) { return at::randn(sizes, at::kDouble).to(type); };
  ShortConv in;
  in.x = normal({c.batch, c.tokens, c.channels});
  in.weight = normal({c.channels, c.width});
  if (c.bias) in.bias = normal({c.channels});
  in.silu = c.silu;
  if (c.state) in.initial_state = normal({c.batch, c.width - 1, c.channels});
  if (c.starts > 0) {
    in.starts = at::rand({c.batch, c.tokens}) < c.starts;
    if (c.tokens > 0) in.starts.select(1, 0).fill_(true);
    if (c.tokens > 6) in.starts.narrow(1, 5, 2).fill_(true);  // a document of one token
  }
  return in;
}

// Every width and awkward length; groups are of 4 tokens, tiles of 256, blocks of 128 to 512 channels.
inline std::vector<ShortConvCase> short_conv_cases() {
  std::vector<ShortConvCase> cases = {
      {.name = "mamba", .batch = 3, .tokens = 130, .channels = 40, .bias = true, .silu = true, .state = true},
      {.name = "packed",
       .batch = 2,
       .tokens = 200,
       .channels = 24,
       .bias = true,
       .silu = true,
       .state = true,
       .starts = 0.1},
      {.name = "packed_wide", .tokens = 150, .channels = 33, .width = 16, .silu = true, .starts = 0.05},
      {.name = "plain", .tokens = 63, .channels = 16},
      {.name = "state_only_at_first", .tokens = 70, .channels = 5, .state = true, .starts = 0.02},
      {.name = "one_channel_530", .tokens = 530, .width = 3, .silu = true, .state = true},
      {.name = "two_blocks", .tokens = 21, .channels = 530, .bias = true, .silu = true, .state = true},
      {.name = "blocks_wide", .tokens = 39, .channels = 269, .width = 16, .bias = true, .starts = 0.1},
      {.name = "packed_tiles",
       .batch = 2,
       .tokens = 517,
       .channels = 9,
       .width = 7,
       .bias = true,
       .silu = true,
       .state = true,
       .starts = 0.01},
  };
  for (int64_t width = 2; width <= 16; ++width)
    cases.push_back({.name = "width_" + std::to_string(width),
                     .batch = 2,
                     .tokens = 67,
                     .channels = 18,
                     .width = width,
                     .bias = width % 2 == 0,
                     .silu = width % 3 == 0,
                     .state = width % 5 != 0});
  for (const int64_t tokens : {0, 1, 2, 3, 4, 5, 17, 255, 256, 257, 259})
    cases.push_back({.name = "tokens_" + std::to_string(tokens),
                     .batch = 2,
                     .tokens = tokens,
                     .channels = 9,
                     .width = tokens == 2 ? 8 : 4,
                     .bias = true,
                     .silu = true,
                     .state = true,
                     .starts = tokens == 3 ? 0.3 : 0});
  return cases;
}

}  // namespace weft::ops
