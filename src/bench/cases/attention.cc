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
    const auto options = at::TensorOptions(at::kFloat).device(device);
    return (device.is_cuda() ? at::randn(shape, options) : at::randn(shape, generator, options)).to(dtype);
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

const ops::AttentionBounds bounds;

double bound_of(at::ScalarType dtype) { return dtype == at::kFloat ? bounds.fp32 : bounds.half; }

std::string shape_of(const AttentionCase& c) {
  return fmt::format("{}x{}{}, {}/{}h, {}{}", c.batch, c.queries,
                     c.queries == c.keys ? "" : fmt::format("/{}", c.keys), c.heads, c.key_heads, c.key_width,
                     c.window > 0 ? fmt::format(", w{}", c.window) : "");
}

double flops_of(const AttentionCase& c, double pairs_of_head) {
  return pairs_of_head * static_cast<double>(2 * c.batch * c.heads * (c.key_width + c.value_width));
}

OpCase make(const AttentionCase& timed, AttentionCase checked, at::ScalarType dtype, at::Device device) {
  const auto mask_of_case = [](const AttentionCase& c) {
    return ops::Mask{.causal = c.causal, .window = c.window, .sinks = c.sinks};
  };
  const auto mask = mask_of_case(timed), small_mask = mask_of_case(checked);
  const int64_t timed_keys = timed.keys;
  OpCase result;
  result.op = "attention " + timed.name;
  result.shape = shape_of(timed);
  result.peer = timed.window > 0 ? "at::scaled_dot_product_attention, mask made before"
                                 : "at::scaled_dot_product_attention";
  const auto mask_for = [=](const Tensors& x) { return x[1].size(1) == timed_keys ? mask : small_mask; };
  result.weft = [=](const Tensors& x) { return Tensors{ops::attention(x[0], x[1], x[2], mask_for(x)).out}; };
  result.reference = [=](const Tensors& x) {
    return Tensors{ops::reference::attention(x[0], x[1], x[2], mask_for(x)).out};
  };
  result.peer_call = [=, large = sdpa(timed, device), small = sdpa(checked, device)](const Tensors& x) {
    return x[1].size(1) == timed_keys ? large(x) : small(x);
  };
  result.inputs = [=] { return list_of(timed, dtype, device); };
  result.check_inputs = [=] { return list_of(checked, dtype, device); };
  result.bound = result.gradient_bound = bound_of(dtype);
  result.flops = flops_of(timed, pairs(timed));
  result.backward_factor = 2.5;  // five products instead of two
  result.step = timed.queries == 1;
  return result;
}

// Queries in fp32 against a cache of 16- or 8-bit keys and values; forward only.
OpCase cache_case(const std::string& name, const AttentionCase& timed, at::ScalarType keys,
                  at::Device device) {
  const AttentionCase checked{"", 2, timed.queries == 1 ? 1 : 37, 101, 4, 2, 32, 32};
  const auto list = [=](const AttentionCase& c) {
    auto x = list_of(c, at::kFloat, device);
    if (keys != at::kChar) return Tensors{x[0], x[1].to(keys), x[2].to(keys)};
    const auto k = ops::quantize_rows(x[1]), v = ops::quantize_rows(x[2]);
    return Tensors{x[0], k.values, v.values, k.scale, v.scale};
  };
  const auto options = [](const Tensors& x) {
    return x.size() > 3 ? ops::AttentionOptions{.k_scale = x[3], .v_scale = x[4]} : ops::AttentionOptions{};
  };
  OpCase result;
  result.op = fmt::format("attention {}, {} keys", timed.name, name);
  result.shape = shape_of(timed);
  result.external = timed.queries == 1
                        ? fmt::format("attention_decode_{}_{}", timed.keys, name)
                        : fmt::format("attention_prefill_{}x{}_{}", timed.queries, timed.keys, name);
  result.weft = [=](const Tensors& x) {
    return Tensors{ops::attention(x[0], x[1], x[2], {}, options(x)).out};
  };
  result.reference = [=](const Tensors& x) {
    return Tensors{ops::reference::attention(x[0], x[1], x[2], {}, options(x)).out};
  };
  result.inputs = [=] { return list(timed); };
  result.check_inputs = [=] { return list(checked); };
  result.bound = bounds.fp32;
  result.flops = flops_of(timed, pairs(timed));
  result.step = true;
  return result;
}

// A mask that is a program of its own; the peer gets it as a dense boolean matrix made before.
OpCase program_case(const std::string& name, const AttentionCase& timed, const AttentionCase& checked,
                    const std::function<ops::Mask(const AttentionCase&)>& mask_of, at::ScalarType dtype,
                    at::Device device) {
  const auto case_of = [=](const Tensors& x) { return x[1].size(1) == timed.keys ? timed : checked; };
  const auto dense = [=](const AttentionCase& c) {
    return ops::reference::visible_keys(mask_of(c), 1, c.queries, c.keys, device);
  };
  OpCase result;
  result.op = "attention " + name;
  result.shape = shape_of(timed);
  result.peer = "at::scaled_dot_product_attention, mask made before";
  result.weft = [=, large = mask_of(timed), small = mask_of(checked)](const Tensors& x) {
    return Tensors{ops::attention(x[0], x[1], x[2], x[1].size(1) == timed.keys ? large : small).out};
  };
  result.reference = [=](const Tensors& x) {
    return Tensors{ops::reference::attention(x[0], x[1], x[2], mask_of(case_of(x))).out};
  };
  result.peer_call = [=, large = dense(timed), small = dense(checked)](const Tensors& x) {
    const auto y =
        at::scaled_dot_product_attention(x[0].transpose(1, 2), x[1].transpose(1, 2), x[2].transpose(1, 2),
                                         x[1].size(1) == timed.keys ? large : small);
    return Tensors{y.transpose(1, 2)};
  };
  result.inputs = [=] { return list_of(timed, dtype, device); };
  result.check_inputs = [=] { return list_of(checked, dtype, device); };
  result.bound = result.gradient_bound = bound_of(dtype);
  result.flops = flops_of(timed, dense(timed).sum().item<double>());
  result.backward_factor = 2.5;
  return result;
}

}  // namespace

std::vector<OpCase> attention_op_cases(at::ScalarType dtype, at::Device device) {
  std::vector<OpCase> cases{
      make({"causal", 2, 1024, 1024, 8, 8, 64, 64}, {"", 2, 75, 75, 2, 2, 24, 24}, dtype, device),
      make({"causal", 16, 256, 256, 3, 3, 64, 64}, {"", 2, 75, 75, 3, 3, 24, 24}, dtype, device),
      make({"window", 1, 4096, 4096, 8, 2, 64, 64, true, 1024, 4},
           {"", 2, 101, 101, 4, 2, 24, 24, true, 20, 4}, dtype, device),
      make({"window", 16, 256, 256, 3, 3, 64, 64, true, 128}, {"", 2, 101, 101, 2, 2, 24, 24, true, 20},
           dtype, device)};
  const AttentionCase doubled{"", 1, 2048, 2048, 8, 8, 64, 64}, small_doubled{"", 1, 90, 90, 2, 2, 24, 24};
  cases.push_back(program_case(
      "TiDAR mask, block 16", doubled, small_doubled,
      [](const AttentionCase& c) { return ops::tidar_training_mask(1, c.queries / 2, 16); }, dtype, device));
  cases.push_back(program_case(
      "strided blocks of 64, local 4, stride 8", {"", 1, 4096, 4096, 8, 8, 64, 64},
      {"", 1, 300, 300, 2, 2, 24, 24},
      [](const AttentionCase& c) { return ops::block_stride_mask(1, c.queries, c.keys, 64, 4, 8, 1); }, dtype,
      device));
  if (dtype != at::kFloat) return cases;
  const AttentionCase prefill{"prefill", 1, 512, 4096, 32, 8, 128, 128},
      decode{"decode", 1, 1, 4096, 32, 8, 128, 128}, long_decode{"decode", 1, 1, 32768, 32, 8, 128, 128};
  for (const auto& c : {prefill, decode, long_decode}) {
    cases.push_back(make(c, {"", 2, c.queries == 1 ? 1 : 37, 101, 4, 2, 24, 24}, dtype, device));
    cases.back().step = true;
    for (const auto& [name, type] :
         {std::pair{"bf16", at::kBFloat16}, {"fp16", at::kHalf}, {"int8", at::kChar}})
      cases.push_back(cache_case(name, c, type, device));
  }
  return cases;
}

std::vector<OpCase> gpu_decode_op_cases(at::ScalarType dtype, at::Device device) {
  std::vector<OpCase> cases;
  for (const AttentionCase& c : std::vector<AttentionCase>{{"decode", 1, 1, 4096, 32, 8, 128, 128},
                                                           {"decode", 1, 1, 32768, 32, 8, 128, 128},
                                                           {"decode", 8, 1, 4096, 32, 8, 128, 128},
                                                           {"decode", 32, 1, 2048, 32, 8, 128, 128},
                                                           {"decode", 8, 1, 4096, 32, 32, 64, 64}}) {
    cases.push_back(make(c, {"", 2, 1, 301, 8, 2, c.key_width, c.value_width}, dtype, device));
    cases.back().step = true;
  }
  return cases;
}

}  // namespace weft::bench
