// Shapes that fill a GPU: each family at a headline shape, then the same number of tokens in other lengths, widths and
// documents. Peers run in a process of their own (bench/peers/gpu_ops.py).
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <fmt/format.h>

#include <cmath>

#include "bench/op_case.h"
#include "ops/attention/attention.h"
#include "ops/conv/conv.h"
#include "ops/linear_attention/linear_attention.h"
#include "ops/linear_attention/linear_attention_cases.h"
#include "ops/linear_attention/ring.h"
#include "ops/rnn/rnn.h"
#include "ops/rnn/rnn_cases.h"
#include "ops/scan/scan.h"
#include "ops/scan/scan_cases.h"

namespace weft::bench {
namespace {

// Random tensors made on the device itself: those of the headline shapes would take seconds to make on the CPU.
struct Maker {
  at::ScalarType dtype;
  at::Device device;

  at::TensorOptions wide() const { return at::TensorOptions(at::kFloat).device(device); }
  at::Tensor normal(at::IntArrayRef sizes, double scale = 1) const {
    return (at::randn(sizes, wide()) * scale).to(dtype);
  }
  // In [low, high], fp32.
  at::Tensor uniform(at::IntArrayRef sizes, double low, double high) const {
    return at::rand(sizes, wide()) * (high - low) + low;
  }
};

struct Shape {
  int64_t batch, tokens, heads, width;
  bool documents = false;

  bool is_headline() const { return batch == 8 && tokens == 2048 && !documents; }
};

constexpr int64_t kDocuments = 8;

// True where one of eight documents of uneven lengths begins.
at::Tensor document_starts(const Shape& s, at::Device device) {
  auto starts = at::zeros({s.batch, s.tokens}, at::kBool);
  for (int64_t i = 0; i < kDocuments; ++i)
    starts.select(1, s.tokens * i * i / (kDocuments * kDocuments)).fill_(true);
  return starts.to(device);
}

// 16,384 tokens of 16 heads of 128, cut otherwise; 32,768 in the longest.
std::vector<Shape> lengths(int64_t heads, int64_t width) {
  return {{8, 2048, heads, width},
          {32, 512, heads, width},
          {2, 8192, heads, width},
          {1, 32768, heads, width},
          {1, 16384, heads, width, true}};
}

std::string shape_text(const Shape& s) {
  return fmt::format("{}x{}, {}x{}{}", s.batch, s.tokens, s.heads, s.width, s.documents ? ", documents" : "");
}

using Decay = ops::LinearAttentionCase::Decay;

struct LinearRow {
  const char *name, *external;
  Decay decay = Decay::none;
  bool erase = false, low_rank = false;
};

// q, k, v, log_decay, beta, erase_read, erase_write, starts, initial_state
Tensors linear_inputs(const LinearRow& row, const Shape& s, const Maker& make, bool state = false) {
  const std::vector<int64_t> rows{s.batch, s.tokens, s.heads, s.width}, gates{s.batch, s.tokens, s.heads};
  const auto unit = [&](const at::Tensor& x) { return x / x.norm(2, {-1}, true).clamp_min(1e-3); };
  Tensors x(9);
  x[0] = make.normal(rows), x[1] = make.normal(rows), x[2] = make.normal(rows);
  if (row.erase) x[1] = unit(x[1]);
  if (row.decay == Decay::scalar) x[3] = make.uniform(gates, -0.3, 0);
  if (row.decay == Decay::vector) x[3] = make.uniform(rows, -0.3, 0).to(make.dtype);
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
  return row.decay == Decay::constant ? make.uniform({s.heads}, -0.3, 0) : at::Tensor();
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
  const LinearRow row{"gdn", "gpu_gdn_step", Decay::scalar, true};
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
  result.external = fmt::format("gpu_gdn_step_{}", batch);
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

// h = a h + b, a and b of the type.
OpCase scan_case(const Shape& shape, const Maker& make) {
  const auto list = [make](const Shape& s) {
    const std::vector<int64_t> sizes{s.batch, s.tokens, s.width};
    return Tensors{make.uniform(sizes, 0.7, 1).to(make.dtype), make.normal(sizes),
                   s.documents ? document_starts(s, make.device) : at::Tensor()};
  };
  OpCase result;
  result.op = "scan";
  result.shape = fmt::format("{}x{}, {} channels{}", shape.batch, shape.tokens, shape.width,
                             shape.documents ? ", documents" : "");
  if (shape.is_headline()) result.external = "gpu_scan";
  result.weft = [](const Tensors& x) { return Tensors{ops::scan(x[0], x[1], {}, x[2]).h}; };
  result.reference = [](const Tensors& x) { return Tensors{ops::reference::scan(x[0], x[1], {}, x[2]).h}; };
  result.inputs = [=] { return list(shape); };
  result.check_inputs = [=] { return list({2, 141, 1, 72, shape.documents}); };
  result.bound = result.gradient_bound = ops::scan_bound(make.dtype);
  result.flops = 2.0 * static_cast<double>(shape.batch * shape.tokens * shape.width);
  return result;
}

OpCase selective_case(const Shape& shape, const Maker& make) {
  constexpr int64_t kStates = 16;
  const auto list = [make](const Shape& s) {
    const std::vector<int64_t> rows{s.batch, s.tokens, s.width}, maps{s.batch, s.tokens, kStates};
    return Tensors{make.normal(rows),
                   make.uniform(rows, 0.001, 0.1).to(make.dtype),
                   -make.uniform({s.width, kStates}, 0.5, 16),
                   make.normal(maps),
                   make.normal(maps),
                   make.uniform({s.width}, 0.5, 1.5),
                   s.documents ? document_starts(s, make.device) : at::Tensor()};
  };
  const auto problem = [](const Tensors& x) {
    return ops::SelectiveScan{
        .u = x[0], .delta = x[1], .a = x[2], .b = x[3], .c = x[4], .skip = x[5], .starts = x[6]};
  };
  OpCase result;
  result.op = "selective scan";
  result.shape = fmt::format("{}x{}, {} ch x {}{}", shape.batch, shape.tokens, shape.width, kStates,
                             shape.documents ? ", documents" : "");
  if (shape.is_headline()) result.external = "gpu_selective";
  result.weft = [=](const Tensors& x) { return Tensors{ops::selective_scan(problem(x)).y}; };
  result.reference = [=](const Tensors& x) { return Tensors{ops::reference::selective_scan(problem(x)).y}; };
  result.inputs = [=] { return list(shape); };
  result.check_inputs = [=] { return list({2, 141, 1, 72, shape.documents}); };
  result.bound = result.gradient_bound = ops::scan_bound(make.dtype);
  // In units of the fp32 pipes an exponential and nine operations a state; the rate that counts is that of products.
  result.flops = 9.0 * static_cast<double>(shape.batch * shape.tokens * shape.width * kStates);
  return result;
}

OpCase conv_case(const Shape& shape, const Maker& make) {
  constexpr int64_t kWidth = 4;
  const auto list = [make](const Shape& s) {
    return Tensors{make.normal({s.batch, s.tokens, s.width}), make.normal({s.width, kWidth}, 0.5),
                   s.documents ? document_starts(s, make.device) : at::Tensor()};
  };
  const auto problem = [](const Tensors& x) {
    return ops::ShortConv{.x = x[0], .weight = x[1], .silu = true, .starts = x[2]};
  };
  OpCase result;
  result.op = "conv + silu";
  result.shape = fmt::format("{}x{}, {} ch, width {}{}", shape.batch, shape.tokens, shape.width, kWidth,
                             shape.documents ? ", documents" : "");
  if (shape.is_headline()) result.external = "gpu_conv";
  result.weft = [=](const Tensors& x) { return Tensors{ops::short_conv(problem(x)).y}; };
  result.reference = [=](const Tensors& x) { return Tensors{ops::reference::short_conv(problem(x)).y}; };
  result.inputs = [=] { return list(shape); };
  result.check_inputs = [=] { return list({2, 141, 1, 72, shape.documents}); };
  result.bound = result.gradient_bound = make.dtype == at::kFloat ? 1e-5 : 2e-2;
  result.flops = 2.0 * kWidth * static_cast<double>(shape.batch * shape.tokens * shape.width);
  return result;
}

struct MaskRow {
  const char *name, *external;
  std::function<ops::Mask(int64_t batch, int64_t tokens)> mask;
};

OpCase attention_case(const MaskRow& row, const Shape& shape, const Maker& make) {
  const auto list = [make](const Shape& s) {
    const std::vector<int64_t> rows{s.batch, s.tokens, s.heads, s.width};
    return Tensors{make.normal(rows), make.normal(rows), make.normal(rows)};
  };
  const Shape checked{1, 320, 2, shape.width};
  const auto large = ops::on_device(row.mask(shape.batch, shape.tokens), make.device),
             small = ops::on_device(row.mask(checked.batch, checked.tokens), make.device),
             one = ops::on_device(row.mask(1, shape.tokens), make.device);
  const auto mask_for = [=](const Tensors& x) { return x[0].size(1) == shape.tokens ? large : small; };
  const auto seen = ops::reference::visible_keys(one, 1, shape.tokens, shape.tokens, make.device);
  OpCase result;
  result.op = std::string("attention ") + row.name;
  result.shape = shape_text(shape);
  result.external = shape.width == 128 && shape.batch != 1 ? row.external : "";
  result.weft = [=](const Tensors& x) { return Tensors{ops::attention(x[0], x[1], x[2], mask_for(x)).out}; };
  result.reference = [=](const Tensors& x) {
    return Tensors{ops::reference::attention(x[0], x[1], x[2], mask_for(x)).out};
  };
  result.inputs = [=] { return list(shape); };
  result.check_inputs = [=] { return list(checked); };
  result.bound = result.gradient_bound = make.dtype == at::kFloat ? 1e-5 : 2e-2;
  result.flops =
      4.0 * static_cast<double>(shape.batch * shape.heads * shape.width) * seen.sum().item<double>();
  result.backward_factor = 2.5;
  return result;
}

// Input projection and recurrence, as torch's layers have it.
OpCase rnn_case(int64_t heads, const Shape& shape, const Maker& make) {
  const auto list = [=](int64_t batch, int64_t tokens, int64_t size) {
    const auto scale = 1 / std::sqrt(static_cast<double>(size)),
               inner = std::sqrt(static_cast<double>(heads)) * scale;
    return Tensors{make.normal({batch, tokens, size}), make.normal({4 * size, size}, scale),
                   make.normal({4, heads, size / heads, size / heads}, inner)};
  };
  const auto problem = [](const Tensors& x) {
    const int64_t count = x[2].size(1), width = x[2].size(2);
    return ops::Rnn{
        .cell = "lstm", .wx = at::linear(x[0], x[1]).unflatten(-1, {4, count, width}), .recurrent = x[2]};
  };
  OpCase result;
  result.op = "linear + lstm";
  result.shape = fmt::format("{}x{}, {}x{}", shape.batch, shape.tokens, heads, shape.width / heads);
  result.external = shape.tokens == 1024 ? fmt::format("gpu_lstm_{}", heads) : "";
  result.weft = [=](const Tensors& x) { return Tensors{ops::rnn(problem(x)).h}; };
  result.reference = [=](const Tensors& x) { return Tensors{ops::reference::rnn(problem(x)).h}; };
  result.inputs = [=] { return list(shape.batch, shape.tokens, shape.width); };
  result.check_inputs = [=] { return list(5, 37, shape.width); };
  result.bound = result.gradient_bound = ops::rnn_bound(make.dtype);
  const double size = static_cast<double>(shape.width);
  result.flops = 8.0 * static_cast<double>(shape.batch * shape.tokens) * size *
                 (size + size / static_cast<double>(heads));
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
  auto shapes = lengths(32, 64);
  shapes.push_back({8, 2048, 16, 128});
  for (const auto& shape : shapes) cases.push_back(mamba2_case(shape, make));
  for (const bool with_ring : {false, true})
    for (const int64_t batch : {1, 32, 256}) cases.push_back(step_case(batch, with_ring, make));
  return cases;
}

std::vector<OpCase> gpu_recurrence_op_cases(at::ScalarType dtype, at::Device device) {
  const Maker make{dtype, device};
  std::vector<OpCase> cases;
  for (const auto& one : {scan_case, selective_case, conv_case})
    for (const auto& shape : lengths(1, 2048)) cases.push_back(one(shape, make));
  for (const int64_t heads : {1, 6, 12}) cases.push_back(rnn_case(heads, {16, 1024, heads, 768}, make));
  for (const int64_t heads : {1, 6}) cases.push_back(rnn_case(heads, {32, 512, heads, 768}, make));
  return cases;
}

std::vector<OpCase> gpu_attention_op_cases(at::ScalarType dtype, at::Device device) {
  const Maker make{dtype, device};
  const MaskRow causal{"causal", "gpu_causal", [](int64_t, int64_t) { return ops::Mask{}; }};
  const MaskRow window{"window 512", "gpu_window", [](int64_t, int64_t tokens) {
                         return ops::Mask{.window = std::min<int64_t>(512, tokens / 3)};
                       }};
  const MaskRow tidar{"TiDAR, block 16", "gpu_tidar", [](int64_t batch, int64_t tokens) {
                        return ops::tidar_training_mask(batch, tokens / 2, 16);
                      }};
  std::vector<OpCase> cases{attention_case(causal, {8, 2048, 16, 128}, make)};
  for (const auto& [heads, width] : {std::pair<int64_t, int64_t>{16, 128}, {32, 64}, {8, 256}}) {
    cases.push_back(attention_case(tidar, {2, 4096, heads, width}, make));
    cases.push_back(attention_case(window, {2, 4096, heads, width}, make));
  }
  cases.push_back(attention_case(window, {1, 16384, 16, 128}, make));
  return cases;
}

}  // namespace weft::bench
