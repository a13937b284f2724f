// Linear attention in its forms, and one decoding step of them.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <fmt/format.h>

#include "bench/op_case.h"
#include "bench/peers/eager.h"
#include "ops/linear_attention/linear_attention.h"
#include "ops/linear_attention/linear_attention_cases.h"

namespace weft::bench {
namespace {

using ops::LinearAttentionCase;
using Decay = LinearAttentionCase::Decay;

constexpr int64_t kChunk = 64;

struct Form {
  const char* name;
  Decay decay;
  bool erase;
};

// Inputs as a list: q, k, v, log decay, beta, and in step form the state.
ops::LinearAttention problem_of(const Tensors& x) {
  return {.q = x[0],
          .k = x[1],
          .v = x[2],
          .log_decay = x[3],
          .beta = x[4],
          .initial_state = x.size() > 5 ? x[5] : at::Tensor()};
}

Tensors list_of(const LinearAttentionCase& c, at::ScalarType dtype, at::Device device) {
  const auto in = ops::linear_attention_inputs(c, dtype);
  Tensors list{in.q, in.k, in.v, in.log_decay, in.beta};
  if (c.state) list.push_back(in.initial_state);
  for (auto& x : list)
    if (x.defined()) x = x.to(device);
  return list;
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
          .state = state};
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
  result.reference = [](const Tensors& x) {
    return Tensors{ops::reference::linear_attention(problem_of(x)).y};
  };
  result.peer_call = [](const Tensors& x) {
    return Tensors{peers::chunked_linear_attention(x[0], x[1], x[2], x[3], x[4], kChunk)};
  };
  return result;
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
  result.reference = [](const Tensors& x) {
    const auto y = ops::reference::linear_attention(problem_of(x));
    return Tensors{y.y, y.state};
  };
  result.peer_call = [](const Tensors& x) {
    auto state = x[5];
    const auto y = peers::linear_attention_step(x[0], x[1], x[2], x[3], x[4], state);
    return Tensors{y, state};
  };
  return result;
}

}  // namespace

std::vector<OpCase> linear_attention_op_cases(at::ScalarType dtype, at::Device device) {
  const Form gdn{"gdn", Decay::scalar, true}, kda{"kda", Decay::vector, true};
  const Form forms[] = {{"none", Decay::none, false},
                        {"scalar", Decay::scalar, false},
                        {"vector", Decay::vector, false},
                        {"delta", Decay::none, true},
                        gdn,
                        kda};
  std::vector<OpCase> cases;
  for (const auto& form : forms) cases.push_back(sequence(form, 1, 1024, 8, 64, dtype, device));
  for (const auto& form : {gdn, kda}) cases.push_back(sequence(form, 1, 512, 32, 128, dtype, device));
  for (const auto& form : {gdn, kda}) cases.push_back(step(form, 1, 32, 128, dtype, device));
  cases.push_back(step(gdn, 8, 32, 128, dtype, device));
  return cases;
}

}  // namespace weft::bench
