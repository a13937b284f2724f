// Linear attention at shapes that fill a GPU, and Mamba-2, steps and rings.
#include "bench/cases/gpu.h"
#include "ops/linear_attention/linear_attention.h"
#include "ops/linear_attention/linear_attention_cases.h"
#include "ops/linear_attention/ring.h"

namespace weft::bench {
namespace {

using Decay = ops::LinearAttentionCase::Decay;

struct LinearRow {
  const char *name, *external;
  Decay decay = Decay::none;
  bool erase = false, low_rank = false;
  double strength = 0.3;  // log decays are uniform in [-strength, 0]
};

// q, k, v, log_decay, beta, erase_read, erase_write, starts, initial_state
Tensors linear_inputs(const LinearRow& row, const Shape& s, const Maker& make, bool state = false) {
  const std::vector<int64_t> rows{s.batch, s.tokens, s.heads, s.width}, gates{s.batch, s.tokens, s.heads};
  const auto unit = [&](const at::Tensor& x) { return x / x.norm(2, {-1}, true).clamp_min(1e-3); };
  Tensors x(9);
  x[0] = make.normal(rows), x[1] = make.normal(rows), x[2] = make.normal(rows);
  if (row.erase) x[1] = unit(x[1]);
  if (row.decay == Decay::scalar) x[3] = make.uniform(gates, -row.strength, 0);
  if (row.decay == Decay::vector) x[3] = make.uniform(rows, -row.strength, 0).to(make.dtype);
  if (row.erase) x[4] = make.uniform(gates, 0, 1.5).to(make.dtype);
  if (row.low_rank) {
    const auto direction = unit(make.normal(rows));
    x[5] = -direction, x[6] = (direction * make.uniform(rows, 0, 1)).to(make.dtype);
  }
  if (s.documents) x[7] = document_starts(s, make.device);
  if (state) x[8] = at::randn({s.batch, s.heads, s.width, s.width}, make.wide());
  return x;
}

// What a constant decay is: no parameter, so it gets no gradient and is no input.
at::Tensor constant_decay(const LinearRow& row, const Shape& s, const Maker& make) {
  return row.decay == Decay::constant ? make.uniform({s.heads}, -row.strength, 0) : at::Tensor();
}

ops::LinearAttention linear_problem(const Tensors& x) {
  return {.q = x[0],
          .k = x[1],
          .v = x[2],
          .log_decay = x[3],
          .beta = x[4],
          .erase_read = x[5],
          .erase_write = x[6],
          .initial_state = x[8],
          .starts = x[7]};
}

OpCase linear_case(const LinearRow& row, const Shape& shape, const Maker& make) {
  const auto bounds = ops::linear_attention_bounds(make.dtype);
  const Shape checked{2, 141, 2, shape.width, shape.documents};
  OpCase result;
  result.op = std::string("lin.att. ") + row.name;
  result.shape = shape_text(shape);
  if (shape.is_headline() && shape.heads * shape.width == 2048 && shape.width != 256 &&
      (shape.width == 128) != row.low_rank)
    result.external = row.external;
  const auto problem = [large = constant_decay(row, shape, make),
                        small = constant_decay(row, checked, make)](const Tensors& x) {
    auto in = linear_problem(x);
    const auto& decay = small.defined() && x[0].size(2) == small.numel() ? small : large;
    if (decay.defined()) in.log_decay = decay;
    return in;
  };
  result.weft = [=](const Tensors& x) { return Tensors{ops::linear_attention(problem(x)).y}; };
  result.reference = [=](const Tensors& x) {
    return Tensors{ops::reference::linear_attention(problem(x)).y};
  };
  result.inputs = [=] { return linear_inputs(row, shape, make); };
  result.check_inputs = [=] { return linear_inputs(row, checked, make); };
  result.bound = bounds.y, result.gradient_bound = bounds.gradient;
  result.flops = ops::LinearAttentionCase{.batch = shape.batch,
                                          .tokens = shape.tokens,
                                          .heads = shape.heads,
                                          .key_width = shape.width,
                                          .value_width = shape.width,
                                          .erase = row.erase,
                                          .erase_heads = row.low_rank ? shape.heads : 0}
                     .flops();
  return result;
}

// Mamba-2: 32 value heads of 64 read one q and k of 128; write strengths are its step sizes.
OpCase mamba2_case(const Shape& shape, const Maker& make) {
  constexpr int64_t kStates = 128;
  const auto list = [make](const Shape& s) {
    const std::vector<int64_t> shared{s.batch, s.tokens, 1, kStates}, gates{s.batch, s.tokens, s.heads};
    Tensors x{make.normal(shared),
              make.normal(shared),
              make.normal({s.batch, s.tokens, s.heads, s.width}),
              make.uniform(gates, -0.3, 0),
              make.uniform(gates, 0.5, 1.5).to(make.dtype),
              at::Tensor()};
    if (s.documents) x[5] = document_starts(s, make.device);
    return x;
  };
  const auto problem = [](const Tensors& x) {
    return ops::LinearAttention{
        .q = x[0], .k = x[1], .v = x[2], .log_decay = x[3], .write = x[4], .starts = x[5]};
  };
  const auto bounds = ops::linear_attention_bounds(make.dtype);
  OpCase result;
  result.op = "lin.att. mamba-2";
  result.shape = shape_text(shape) + fmt::format(", N {}", kStates);
  if (shape.is_headline() && shape.width == 64) result.external = "gpu_mamba2";
  result.weft = [=](const Tensors& x) { return Tensors{ops::linear_attention(problem(x)).y}; };
  result.reference = [=](const Tensors& x) {
    return Tensors{ops::reference::linear_attention(problem(x)).y};
  };
  result.inputs = [=] { return list(shape); };
  result.check_inputs = [=] { return list({2, 141, 4, shape.width, shape.documents}); };
  result.bound = bounds.y, result.gradient_bound = bounds.gradient;
  result.flops = 4.0 * static_cast<double>(shape.batch * shape.tokens * shape.heads * kStates * shape.width);
  return result;
}

OpCase step_case(int64_t batch, bool with_ring, const Maker& make) {
  const LinearRow row{"gdn", "", Decay::scalar, true};
  const auto list = [=](const Shape& s) {
    auto x = linear_inputs(row, s, make, true);
    if (!with_ring) return x;
    const auto ring = ops::linear_attention_ring(linear_problem(x));
    for (const auto& part : {ring.state, ring.length, ring.keys, ring.values, ring.decays}) x.push_back(part);
    x[8] = at::Tensor();
    return x;
  };
  const auto ring_of = [](const Tensors& x) {
    return ops::LinearAttentionRing{x[9], x[10], x[11], x[12], x[13]};
  };
  const auto bounds = ops::linear_attention_bounds(make.dtype);
  OpCase result;
  result.op = with_ring ? "lin.att. gdn step, ring" : "lin.att. gdn step";
  result.shape = fmt::format("{}x1, 16x128", batch);
  if (!with_ring) result.external = fmt::format("gpu_gdn_step_{}", batch);
  result.step = true;
  result.weft = [](const Tensors& x) {
    const auto y = ops::linear_attention_step(linear_problem(x));
    return Tensors{y.y, y.state};
  };
  result.reference = [](const Tensors& x) {
    const auto y = ops::reference::linear_attention(linear_problem(x));
    return Tensors{y.y, y.state};
  };
  if (with_ring) {
    result.weft = [=](const Tensors& x) {
      auto ring = ring_of(x);
      return Tensors{ops::linear_attention_ring_step(linear_problem(x), ring)};
    };
    result.reference = [=](const Tensors& x) {
      auto ring = ring_of(x);
      return Tensors{ops::reference::linear_attention_ring_step(linear_problem(x), ring)};
    };
  }
  result.inputs = [=] { return list({batch, 1, 16, 128}); };
  result.check_inputs = [=] { return list({3, 1, 2, 128}); };
  result.bound = bounds.y, result.gradient_bound = bounds.gradient;
  result.flops = 6.0 * static_cast<double>(batch * 16 * 128 * 128);
  return result;
}

}  // namespace

std::vector<OpCase> gpu_linear_attention_op_cases(at::ScalarType dtype, at::Device device) {
  const Maker make{dtype, device};
  const LinearRow rows[] = {{"none", "gpu_none"},
                            {"constant", "gpu_constant", Decay::constant},
                            {"scalar", "gpu_scalar", Decay::scalar},
                            {"vector", "gpu_vector", Decay::vector},
                            {"delta", "gpu_delta", Decay::none, true},
                            {"gdn", "gpu_gdn", Decay::scalar, true},
                            {"kda", "gpu_kda", Decay::vector, true},
                            {"rwkv7", "gpu_rwkv7", Decay::vector, false, true}};
  std::vector<OpCase> cases;
  for (const auto& row : rows) {
    auto shapes = row.low_rank ? lengths(32, 64) : lengths(16, 128);
    for (const Shape& other : {Shape{8, 2048, 32, 64}, Shape{8, 2048, 16, 128}, Shape{8, 2048, 8, 256}})
      if (other.width != shapes[0].width) shapes.push_back(other);
    for (const auto& shape : shapes) cases.push_back(linear_case(row, shape, make));
  }
  constexpr double kStrong = 8;
  cases.push_back(
      linear_case({"vector, strong", "", Decay::vector, false, false, kStrong}, {8, 2048, 16, 128}, make));
  cases.push_back(
      linear_case({"kda, strong", "", Decay::vector, true, false, kStrong}, {8, 2048, 16, 128}, make));
  cases.push_back(
      linear_case({"rwkv7, strong", "", Decay::vector, false, true, kStrong}, {8, 2048, 32, 64}, make));
  auto shapes = lengths(32, 64);
  shapes.push_back({8, 2048, 16, 128});
  for (const auto& shape : shapes) cases.push_back(mamba2_case(shape, make));
  for (const bool with_ring : {false, true})
    for (const int64_t batch : {1, 32, 256}) cases.push_back(step_case(batch, with_ring, make));
  return cases;
}

}  // namespace weft::bench
