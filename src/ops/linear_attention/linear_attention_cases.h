// Shapes, inputs, work and error bounds of linear attention: one list for tests and benchmarks.
#pragma once

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <cmath>
#include <string>
#include <vector>

#include "ops/linear_attention/linear_attention.h"

namespace weft::ops {

struct LinearAttentionCase {
  enum class Decay { none, constant, scalar, vector };

  std::string name;
  int64_t batch = 1, tokens = 1, heads = 1, key_heads = 1, key_width = 1, value_width = 1;
  Decay decay = Decay::none;
  bool erase = false, write = false, bonus = false, state = false;
  int64_t erase_heads = 0;  // of a low rank erase; 0: none
  double strength = 0.3;    // log decays are uniform in [-strength, 0]
  double starts = 0;  // chance that a document starts at a token; above 0 the first token starts one too

  // In step form.
  double flops() const {
    return (erase_heads > 0 ? 8.0
            : erase         ? 6.0
                            : 4.0) *
           static_cast<double>(batch * tokens * heads * key_width * value_width);
  }
  // Of q, k, v, y, gates and the states before and after, each touched once.
  double bytes(int64_t element_bytes) const {
    const double rows = static_cast<double>(batch * tokens);
    const double gates = decay == Decay::vector ? key_width : decay == Decay::scalar ? 1 : 0;
    const double width =
        2.0 * (key_heads + erase_heads) * key_width + heads * (2.0 * value_width + erase + write);
    return rows * (width * static_cast<double>(element_bytes) + heads * gates * 4.0) +
           8.0 * static_cast<double>(batch * heads * key_width * value_width);
  }
};

// Largest error against fp64 divided by the largest magnitude of the tensor.
struct LinearAttentionBounds {
  double y, state, gradient;
};
inline LinearAttentionBounds linear_attention_bounds(at::ScalarType type) {
  return type == at::kFloat ? LinearAttentionBounds{1e-5, 1e-5, 5e-5}
                            : LinearAttentionBounds{2e-2, 1e-2, 3e-2};
}

// As RWKV-7 has it: a of length one, b its opposite weakened channel by channel; both a little off.
inline void low_rank_erase(const LinearAttentionCase& c, at::ScalarType type, LinearAttention& in) {
  const std::vector<int64_t> sizes{c.batch, c.tokens, c.erase_heads, c.key_width};
  auto direction = at::randn(sizes, at::kDouble);
  direction = direction / direction.norm(2, {-1}, true).clamp_min(1e-3);
  const double noise = 0.1 / std::sqrt(static_cast<double>(c.key_width));
  in.erase_read = (noise * at::randn(sizes, at::kDouble) - direction).to(type);
  in.erase_write =
      (noise * at::randn(sizes, at::kDouble) + at::rand(sizes, at::kDouble) * direction).to(type);
}

// Random inputs of a case: q, k, v, beta and write in `type`, decay, bonus and state in its accumulation
// type. Keys have length one when there is an erase.
inline LinearAttention linear_attention_inputs(const LinearAttentionCase& c, at::ScalarType type,
                                               uint64_t seed = 1) {
  at::manual_seed(seed);
  const auto wide = at::TensorOptions(type == at::kDouble ? at::kDouble : at::kFloat);
  const auto normal = [&](at::IntArrayRef sizes) { return at::randn(sizes, at::kDouble).to(type); };
  LinearAttention in;
  in.q = normal({c.batch, c.tokens, c.key_heads, c.key_width});
  in.k = normal({c.batch, c.tokens, c.key_heads, c.key_width});
  in.v = normal({c.batch, c.tokens, c.heads, c.value_width});
  if (c.erase) in.k = in.k / in.k.norm(2, {-1}, true).clamp_min(1e-3);
  using Decay = LinearAttentionCase::Decay;
  if (c.decay == Decay::constant) in.log_decay = at::rand({c.heads}, wide) * -c.strength;
  if (c.decay == Decay::scalar) in.log_decay = at::rand({c.batch, c.tokens, c.heads}, wide) * -c.strength;
  if (c.decay == Decay::vector)
    in.log_decay = at::rand({c.batch, c.tokens, c.heads, c.key_width}, wide) * -c.strength;
  if (c.erase) in.beta = (at::rand({c.batch, c.tokens, c.heads}, at::kDouble) * 1.5).to(type);
  if (c.erase_heads > 0) low_rank_erase(c, type, in);
  if (c.write) in.write = (at::rand({c.batch, c.tokens, c.heads}, at::kDouble) + 0.5).to(type);
  if (c.bonus) in.bonus = at::randn({c.heads, c.key_width}, wide);
  if (c.state) in.initial_state = at::randn({c.batch, c.heads, c.key_width, c.value_width}, wide);
  if (c.starts > 0) {
    in.starts = at::rand({c.batch, c.tokens}) < c.starts;
    if (c.tokens > 0) in.starts.select(1, 0).fill_(true);
    if (c.tokens > 6) in.starts.narrow(1, 5, 2).fill_(true);  // a document of one token
  }
  return in;
}

inline LinearAttention on_device(LinearAttention in, c10::DeviceType device) {
  for (auto* x : {&in.q, &in.k, &in.v, &in.log_decay, &in.beta, &in.erase_read, &in.erase_write, &in.write,
                  &in.bonus, &in.initial_state, &in.starts})
    if (x->defined()) *x = x->to(device);
  return in;
}

// Every axis and every awkward length; chunks are of 32 tokens.
inline std::vector<LinearAttentionCase> linear_attention_cases() {
  using Decay = LinearAttentionCase::Decay;
  std::vector<LinearAttentionCase> cases = {
      {.name = "linear", .tokens = 33, .key_width = 8, .value_width = 8},
      {.name = "linear_one_wide", .batch = 3, .tokens = 34, .heads = 2, .key_heads = 2, .state = true},
      {.name = "retnet",
       .batch = 3,
       .tokens = 65,
       .heads = 2,
       .key_heads = 2,
       .key_width = 16,
       .value_width = 24,
       .decay = Decay::constant,
       .state = true},
      {.name = "mamba2",
       .batch = 2,
       .tokens = 70,
       .heads = 4,
       .key_width = 16,
       .value_width = 8,
       .decay = Decay::scalar,
       .write = true,
       .state = true,
       .starts = 0.05},
      {.name = "gla",
       .tokens = 63,
       .heads = 2,
       .key_heads = 2,
       .key_width = 32,
       .value_width = 16,
       .decay = Decay::vector,
       .state = true},
      {.name = "gla_grouped_odd",
       .batch = 2,
       .tokens = 45,
       .heads = 6,
       .key_heads = 2,
       .key_width = 7,
       .value_width = 19,
       .decay = Decay::vector,
       .write = true,
       .starts = 0.1},
      {.name = "gla_forgets_at_once",
       .tokens = 40,
       .key_width = 20,
       .value_width = 9,
       .decay = Decay::vector,
       .state = true,
       .strength = 60},
      {.name = "scalar_forgets_at_once",
       .tokens = 40,
       .key_width = 20,
       .value_width = 9,
       .decay = Decay::scalar,
       .erase = true,
       .state = true,
       .strength = 60},
      {.name = "retnet_forgets_at_once",
       .tokens = 40,
       .key_width = 20,
       .value_width = 9,
       .decay = Decay::constant,
       .state = true,
       .strength = 60},
      {.name = "deltanet_constant_forgets_at_once",
       .tokens = 40,
       .key_width = 20,
       .value_width = 9,
       .decay = Decay::constant,
       .erase = true,
       .state = true,
       .strength = 60},
      {.name = "rwkv6",
       .batch = 2,
       .tokens = 50,
       .heads = 2,
       .key_heads = 2,
       .key_width = 12,
       .value_width = 20,
       .decay = Decay::vector,
       .bonus = true,
       .state = true,
       .starts = 0.06},
      {.name = "bonus_scalar_grouped",
       .tokens = 66,
       .heads = 2,
       .key_width = 9,
       .value_width = 16,
       .decay = Decay::scalar,
       .write = true,
       .bonus = true,
       .state = true},
      {.name = "bonus_without_decay",
       .tokens = 35,
       .heads = 1,
       .key_width = 4,
       .value_width = 5,
       .bonus = true},
      {.name = "deltanet",
       .tokens = 64,
       .heads = 2,
       .key_heads = 2,
       .key_width = 5,
       .value_width = 3,
       .erase = true},
      {.name = "deltanet_constant",
       .batch = 3,
       .tokens = 31,
       .key_width = 16,
       .value_width = 16,
       .decay = Decay::constant,
       .erase = true,
       .state = true},
      {.name = "gdn",
       .batch = 2,
       .tokens = 97,
       .heads = 4,
       .key_heads = 2,
       .key_width = 32,
       .value_width = 64,
       .decay = Decay::scalar,
       .erase = true,
       .state = true,
       .starts = 0.03},
      {.name = "gdn_separate_write",
       .tokens = 47,
       .heads = 2,
       .key_heads = 2,
       .key_width = 17,
       .value_width = 33,
       .decay = Decay::scalar,
       .erase = true,
       .write = true,
       .state = true},
      {.name = "gdn_500",
       .tokens = 500,
       .key_width = 4,
       .value_width = 4,
       .decay = Decay::scalar,
       .erase = true},
      {.name = "gdn_256",
       .tokens = 40,
       .key_width = 256,
       .value_width = 200,
       .decay = Decay::scalar,
       .erase = true,
       .state = true},
      {.name = "kda",
       .batch = 2,
       .tokens = 100,
       .heads = 2,
       .key_heads = 2,
       .key_width = 16,
       .value_width = 40,
       .decay = Decay::vector,
       .erase = true,
       .state = true,
       .starts = 0.04},
      {.name = "kda_grouped",
       .tokens = 59,
       .heads = 3,
       .key_width = 24,
       .value_width = 16,
       .decay = Decay::vector,
       .erase = true,
       .write = true},
  };
  const auto rwkv7 = [](std::string name) {
    return LinearAttentionCase{.name = std::move(name),
                               .batch = 2,
                               .tokens = 70,
                               .heads = 2,
                               .key_heads = 2,
                               .key_width = 16,
                               .value_width = 16,
                               .decay = Decay::vector,
                               .state = true,
                               .erase_heads = 2};
  };
  const auto with = [&](std::string name, const auto& change) {
    auto c = rwkv7(std::move(name));
    change(c);
    cases.push_back(c);
  };
  with("rwkv7", [](auto& c) { c.starts = 0.04; });
  with("rwkv7_odd", [](auto& c) { c.key_width = 7, c.value_width = 19, c.write = true; });
  with("rwkv7_grouped", [](auto& c) { c.heads = 6, c.key_width = 24, c.value_width = 9, c.starts = 0.1; });
  with("rwkv7_erase_of_value_heads", [](auto& c) { c.heads = c.erase_heads = 4, c.key_heads = 1; });
  with("rwkv7_forgets_at_once", [](auto& c) { c.strength = 60; });
  with("dplr_constant_forgets_at_once",
       [](auto& c) { c.decay = Decay::constant, c.strength = 60, c.heads = 4; });
  with("rwkv7_500", [](auto& c) { c.batch = 1, c.tokens = 500, c.key_width = c.value_width = 4; });
  with("dplr_scalar", [](auto& c) { c.decay = Decay::scalar, c.write = true, c.value_width = 33; });
  with("dplr_constant", [](auto& c) { c.decay = Decay::constant, c.state = false; });
  with("dplr_without_decay", [](auto& c) { c.decay = Decay::none, c.tokens = 31; });
  with("rwkv7_16x48", [](auto& c) { c.tokens = 40, c.value_width = 48; });
  with("rwkv7_48x100", [](auto& c) { c.tokens = 40, c.key_width = 48, c.value_width = 100; });
  with("rwkv7_100x256", [](auto& c) { c.batch = 1, c.tokens = 40, c.key_width = 100, c.value_width = 256; });
  with("rwkv7_256x16", [](auto& c) { c.batch = 1, c.tokens = 40, c.key_width = 256; });
  for (const int64_t tokens : {0, 1, 2, 31, 32, 33})
    with("rwkv7_" + std::to_string(tokens), [&](auto& c) { c.tokens = tokens, c.value_width = 12; });
  const auto sized = [&](std::string name, Decay decay, bool erase, int64_t key_width, int64_t value_width) {
    with(std::move(name), [&](auto& c) {
      c.tokens = 40, c.erase_heads = 0, c.decay = decay, c.erase = erase;
      c.key_width = key_width, c.value_width = value_width;
    });
  };
  sized("gdn_16x256", Decay::scalar, true, 16, 256);
  sized("kda_48x16", Decay::vector, true, 48, 16);
  sized("kda_100x48", Decay::vector, true, 100, 48);
  sized("gla_256x100", Decay::vector, false, 256, 100);
  sized("mamba2_100x48", Decay::scalar, false, 100, 48);
  for (const int64_t tokens : {0, 1, 2, 3, 31, 32})
    for (const bool vector : {false, true})
      cases.push_back({.name = (vector ? "kda_" : "gdn_") + std::to_string(tokens),
                       .batch = 2,
                       .tokens = tokens,
                       .heads = 2,
                       .key_heads = 1,
                       .key_width = 8,
                       .value_width = 12,
                       .decay = vector ? Decay::vector : Decay::scalar,
                       .erase = true,
                       .state = true});
  return cases;
}

}  // namespace weft::ops
