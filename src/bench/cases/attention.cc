// Softmax attention: whole, windowed, one query against a long cache.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <fmt/format.h>

#include "bench/op_case.h"
#include "ops/attention/attention.h"
#include "ops/attention/attention_cases.h"

namespace weft::bench {
namespace {

using ops::AttentionCase;

Tensors list_of(const AttentionCase& c, at::ScalarType dtype, at::Device device) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(3);
  const auto normal = [&](at::IntArrayRef shape) {
    return at::randn(shape, generator, at::TensorOptions(at::kFloat)).to(dtype).to(device);
  };
  return {normal({c.batch, c.queries, c.heads, c.key_width}),
          normal({c.batch, c.keys, c.key_heads, c.key_width}),
          normal({c.batch, c.keys, c.key_heads, c.value_width})};
}

// Visible pairs of one head.
double pairs(const AttentionCase& c) {
  double sum = 0;
  for (int64_t i = 0; i < c.queries; ++i) {
    const int64_t past = c.causal ? c.keys - c.queries + i + 1 : c.keys;
    sum += static_cast<double>(c.window > 0 ? std::min(past, c.window + c.sinks) : past);
  }
  return sum;
}

// [T, S] bool, true where a key is seen; for masks that is_causal does not say.
at::Tensor dense_mask(const AttentionCase& c, at::Device device) {
  const auto keys = at::arange(c.keys, at::TensorOptions(at::kLong).device(device));
  const auto queries = keys.slice(0, c.keys - c.queries).unsqueeze(1);
  auto seen = keys <= queries;
  if (c.window > 0) seen = seen & ((keys > queries - c.window) | (keys < c.sinks));
  return seen;
}

// The mask is made once, outside the timed call.
TensorFunction sdpa(const AttentionCase& c, at::Device device) {
  const bool whole = c.causal && c.window == 0 && c.queries == c.keys;
  const bool unmasked = c.queries == 1 && c.window == 0;
  const auto mask = whole || unmasked ? at::Tensor() : dense_mask(c, device);
  const bool grouped = c.key_heads != c.heads;
  return [=](const Tensors& x) {
    const auto y = at::scaled_dot_product_attention(
        x[0].transpose(1, 2), x[1].transpose(1, 2), x[2].transpose(1, 2),
        mask.defined() ? std::optional<at::Tensor>(mask) : std::nullopt, 0.0, whole, std::nullopt, grouped);
    return Tensors{y.transpose(1, 2)};
  };
}

OpCase make(const AttentionCase& timed, AttentionCase checked, at::ScalarType dtype, at::Device device) {
  const auto mask_of_case = [](const AttentionCase& c) {
    return ops::Mask{.causal = c.causal, .window = c.window, .sinks = c.sinks};
  };
  const auto mask = mask_of_case(timed), small_mask = mask_of_case(checked);
  const int64_t timed_keys = timed.keys;
  const ops::AttentionBounds bounds;
  OpCase result;
  result.op = "attention " + timed.name;
  result.shape = fmt::format("{}x{}{}, {}/{}h, {}{}", timed.batch, timed.queries,
                             timed.queries == timed.keys ? "" : fmt::format("/{}", timed.keys), timed.heads,
                             timed.key_heads, timed.key_width,
                             timed.window > 0 ? fmt::format(", w{}", timed.window) : "");
  result.peer = timed.window > 0 ? "at::scaled_dot_product_attention, mask made before"
                                 : "at::scaled_dot_product_attention";
  const auto mask_for = [=](const Tensors& x) { return x[1].size(1) == timed_keys ? mask : small_mask; };
  result.weft = [=](const Tensors& x) { return Tensors{ops::attention(x[0], x[1], x[2], mask_for(x)).out}; };
  result.reference = [=](const Tensors& x) {
    return Tensors{ops::reference::attention(x[0], x[1], x[2], mask_for(x), 0).out};
  };
  result.peer_call = [=, large = sdpa(timed, device), small = sdpa(checked, device)](const Tensors& x) {
    return x[1].size(1) == timed_keys ? large(x) : small(x);
  };
  result.inputs = [=] { return list_of(timed, dtype, device); };
  result.check_inputs = [=] { return list_of(checked, dtype, device); };
  result.bound = result.gradient_bound = dtype == at::kFloat ? bounds.fp32 : bounds.half;
  result.flops = pairs(timed) *
                 static_cast<double>(2 * timed.batch * timed.heads * (timed.key_width + timed.value_width));
  result.backward_factor = 2.5;  // five products instead of two
  result.step = timed.queries == 1;
  return result;
}

}  // namespace

std::vector<OpCase> attention_op_cases(at::ScalarType dtype, at::Device device) {
  return {make({"causal", 2, 1024, 1024, 8, 8, 64, 64}, {"", 2, 75, 75, 2, 2, 24, 24}, dtype, device),
          make({"causal", 16, 256, 256, 3, 3, 64, 64}, {"", 2, 75, 75, 3, 3, 24, 24}, dtype, device),
          make({"window", 1, 4096, 4096, 8, 2, 64, 64, true, 1024, 4},
               {"", 2, 101, 101, 4, 2, 24, 24, true, 20, 4}, dtype, device),
          make({"window", 16, 256, 256, 3, 3, 64, 64, true, 128}, {"", 2, 101, 101, 2, 2, 24, 24, true, 20},
               dtype, device),
          make({"decode", 1, 1, 8192, 16, 4, 128, 128}, {"", 2, 1, 101, 4, 2, 24, 24}, dtype, device)};
}

}  // namespace weft::bench
