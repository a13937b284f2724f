// Linear attention in its forms, and one decoding step of them.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <fmt/format.h>

#include "bench/op_case.h"
#include "bench/peers/eager.h"
#include "ops/linear_attention/linear_attention.h"
#include "ops/linear_attention/linear_attention_cases.h"
#include "ops/linear_attention/ring.h"

namespace weft::bench {
namespace {

using ops::LinearAttentionCase;
using Decay = LinearAttentionCase::Decay;

constexpr int64_t kChunk = 64;

struct Form {
  const char* name;
  Decay decay;
  bool erase, low_rank = false;
};

// Inputs as a list.
ops::LinearAttention problem_of(const Tensors& x) {
  return {.q = x[0],
          .k = x[1],
          .v = x[2],
          .log_decay = x[3],
          .beta = x[4],
          .erase_read = x[5],
          .erase_write = x[6],
          .initial_state = x[7]};
}

Tensors list_of(const LinearAttentionCase& c, at::ScalarType dtype, at::Device device) {
  const auto in = ops::linear_attention_inputs(c, dtype);
  Tensors list{in.q, in.k, in.v, in.log_decay, in.beta, in.erase_read, in.erase_write, in.initial_state};
  for (auto& x : list)
    if (x.defined()) x = x.to(device);
  return list;
}

// The definition, token by token, in plain tensor operations; of a step also the new state.
Tensors reference(const Tensors& x) {
  const auto out = ops::reference::linear_attention(problem_of(x));
  return x[7].defined() ? Tensors{out.y, out.state} : Tensors{out.y};
}

LinearAttentionCase shape_case(const Form& form, int64_t batch, int64_t tokens, int64_t heads, int64_t width,
                               bool state) {
  return {.name = form.name,
          .batch = batch,
          .tokens = tokens,
          .heads = heads,
          .key_heads = heads,
          .key_width = width,
          .value_width = width,
          .decay = form.decay,
          .erase = form.erase,
          .state = state,
          .erase_heads = form.low_rank ? heads : 0};
}

OpCase make(const Form& form, const LinearAttentionCase& timed, const LinearAttentionCase& checked,
            at::ScalarType dtype, at::Device device) {
  const auto bounds = ops::linear_attention_bounds(dtype);
  OpCase result;
  result.op = std::string("lin.att. ") + form.name;
  result.shape = fmt::format("{}x{}, {} heads, {}x{}", timed.batch, timed.tokens, timed.heads,
                             timed.key_width, timed.value_width);
  result.inputs = [=] { return list_of(timed, dtype, device); };
  result.check_inputs = [=] { return list_of(checked, dtype, device); };
  result.bound = bounds.y;
  result.gradient_bound = bounds.gradient;
  result.flops = timed.flops();
  return result;
}

OpCase sequence(const Form& form, int64_t batch, int64_t tokens, int64_t heads, int64_t width,
                at::ScalarType dtype, at::Device device) {
  auto result = make(form, shape_case(form, batch, tokens, heads, width, false),
                     shape_case(form, 2, 2 * kChunk + 13, 2, 24, false), dtype, device);
  result.peer = fmt::format("chunked eager, {} tokens", kChunk);
  result.weft = [](const Tensors& x) { return Tensors{ops::linear_attention(problem_of(x)).y}; };
  result.reference = reference;
  if (form.low_rank) {
    result.peer = "eager token loop";
    result.peer_call = reference;
    return result;
  }
  result.peer_call = [](const Tensors& x) {
    return Tensors{peers::chunked_linear_attention(x[0], x[1], x[2], x[3], x[4], kChunk)};
  };
  return result;
}

// Mamba-2: one key head (its B and C) for 64 value heads, write strengths as its step sizes.
OpCase mamba2(at::ScalarType dtype, at::Device device) {
  const Form form{"mamba-2", Decay::scalar, false};
  LinearAttentionCase timed{.name = form.name,
                            .batch = 1,
                            .tokens = 512,
                            .heads = 64,
                            .key_heads = 1,
                            .key_width = 128,
                            .value_width = 64,
                            .decay = Decay::scalar,
                            .write = true},
      checked{.name = form.name,
              .batch = 2,
              .tokens = 77,
              .heads = 4,
              .key_heads = 1,
              .key_width = 24,
              .value_width = 16,
              .decay = Decay::scalar,
              .write = true};
  auto result = make(form, timed, checked, dtype, device);
  const auto list = [=](const LinearAttentionCase& c) {
    const auto in = ops::linear_attention_inputs(c, dtype);
    Tensors tensors{in.q, in.k, in.v, in.log_decay, in.write};
    for (auto& x : tensors) x = x.to(device);
    return tensors;
  };
  const auto problem = [](const Tensors& x) {
    return ops::LinearAttention{.q = x[0], .k = x[1], .v = x[2], .log_decay = x[3], .write = x[4]};
  };
  result.inputs = [=] { return list(timed); };
  result.check_inputs = [=] { return list(checked); };
  result.external = "mamba2_scan_64x64x128_512";
  result.weft = [=](const Tensors& x) { return Tensors{ops::linear_attention(problem(x)).y}; };
  result.reference = [=](const Tensors& x) {
    return Tensors{ops::reference::linear_attention(problem(x)).y};
  };
  result.peer = fmt::format("chunked eager, {} tokens", kChunk);
  result.peer_call = [](const Tensors& x) {
    const int64_t group = x[2].size(2) / x[0].size(2);
    return Tensors{peers::chunked_linear_attention(x[0].repeat_interleave(group, 2),
                                                   x[1].repeat_interleave(group, 2), x[2] * x[4].unsqueeze(3),
                                                   x[3], {}, kChunk)};
  };
  return result;
}

// The list of a step, then the rest of a ring.
ops::LinearAttentionRing ring_of(const Tensors& x) { return {x[7], x[8], x[9], x[10], x[11]}; }

Tensors ring_list_of(const LinearAttentionCase& c, at::ScalarType dtype, at::Device device) {
  auto list = list_of(c, dtype, device);
  const auto ring = ops::linear_attention_ring(problem_of(list));
  for (const auto& x : {ring.length, ring.keys, ring.values, ring.decays}) list.push_back(x);
  return list;
}

ops::LinearAttention token_of(const Tensors& x) {
  auto in = problem_of(x);
  in.initial_state = at::Tensor();
  return in;
}

OpCase step(const Form& form, int64_t batch, int64_t heads, int64_t width, at::ScalarType dtype,
            at::Device device) {
  auto result = make(form, shape_case(form, batch, 1, heads, width, true),
                     shape_case(form, 3, 1, 2, 24, true), dtype, device);
  result.step = true;
  result.peer = "eager step";
  result.weft = [](const Tensors& x) {
    const auto y = ops::linear_attention_step(problem_of(x));
    return Tensors{y.y, y.state};
  };
  result.reference = reference;
  result.peer_call = [low_rank = form.low_rank](const Tensors& x) {
    if (low_rank) return reference(x);
    auto state = x[7];
    const auto y = peers::linear_attention_step(x[0], x[1], x[2], x[3], x[4], state);
    return Tensors{y, state};
  };
  return result;
}

// A step with a ring, one call in sixteen with its fold; compared with the eager step without.
OpCase ring_step(const Form& form, int64_t batch, int64_t heads, int64_t width, at::ScalarType dtype,
                 at::Device device) {
  auto result = step(form, batch, heads, width, dtype, device);
  const auto timed = shape_case(form, batch, 1, heads, width, true),
             checked = shape_case(form, 3, 1, 2, 24, true);
  result.op += " ring";
  result.inputs = [=] { return ring_list_of(timed, dtype, device); };
  result.check_inputs = [=] { return ring_list_of(checked, dtype, device); };
  result.weft = [](const Tensors& x) {
    auto ring = ring_of(x);
    return Tensors{ops::linear_attention_ring_step(token_of(x), ring)};
  };
  result.reference = [](const Tensors& x) {
    auto ring = ring_of(x);
    return Tensors{ops::reference::linear_attention_ring_step(token_of(x), ring)};
  };
  return result;
}

}  // namespace

std::vector<OpCase> linear_attention_op_cases(at::ScalarType dtype, at::Device device) {
  const Form gdn{"gdn", Decay::scalar, true}, kda{"kda", Decay::vector, true};
  const Form rwkv7{"rwkv7", Decay::vector, false, true};
  const Form forms[] = {{"none", Decay::none, false},
                        {"scalar", Decay::scalar, false},
                        {"vector", Decay::vector, false},
                        {"delta", Decay::none, true},
                        gdn,
                        kda};
  std::vector<OpCase> cases;
  for (const auto& form : forms) cases.push_back(sequence(form, 1, 1024, 8, 64, dtype, device));
  cases.push_back(mamba2(dtype, device));
  for (const auto& form : {gdn, kda}) {
    cases.push_back(sequence(form, 1, 512, 32, 128, dtype, device));
    cases.back().external = fmt::format("{}_prefill_32x128_512", form.name);
  }
  cases.push_back(sequence(rwkv7, 1, 512, 32, 64, dtype, device));
  cases.back().external = "rwkv7_32x64_512";
  for (const auto& form : {gdn, kda}) {
    cases.push_back(step(form, 1, 32, 128, dtype, device));
    cases.back().external = fmt::format("{}_step_32x128", form.name);
  }
  cases.push_back(step(gdn, 8, 32, 128, dtype, device));
  cases.push_back(step(rwkv7, 1, 32, 64, dtype, device));
  for (const auto& form : {gdn, kda}) cases.push_back(ring_step(form, 1, 32, 128, dtype, device));
  return cases;
}

}  // namespace weft::bench
