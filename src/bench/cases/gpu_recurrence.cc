// Scans, the short convolution and LSTMs at shapes that fill a GPU.
#include <cmath>

#include "bench/cases/gpu.h"
#include "ops/conv/conv.h"
#include "ops/rnn/rnn.h"
#include "ops/rnn/rnn_cases.h"
#include "ops/scan/scan.h"
#include "ops/scan/scan_cases.h"

namespace weft::bench {
namespace {

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

std::vector<OpCase> gpu_recurrence_op_cases(at::ScalarType dtype, at::Device device) {
  const Maker make{dtype, device};
  std::vector<OpCase> cases;
  for (const auto& one : {scan_case, selective_case, conv_case})
    for (const auto& shape : lengths(1, 2048)) cases.push_back(one(shape, make));
  for (const int64_t heads : {1, 6, 12}) cases.push_back(rnn_case(heads, {16, 1024, heads, 768}, make));
  for (const int64_t heads : {1, 6}) cases.push_back(rnn_case(heads, {32, 512, heads, 768}, make));
  return cases;
}

}  // namespace weft::bench
