// Nonlinear recurrences: those with matrices together with their input projection, which torch's layers include;
// those without, token by token and by Newton's method.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include "bench/op_case.h"
#include "ops/rnn/rnn.h"
#include "ops/rnn/rnn_cases.h"
#include "ops/rnn/rnn_parallel.h"

namespace weft::bench {
namespace {

struct RnnShape {
  int64_t batch, tokens, heads, width;
};

// Inputs as a list: x [B, T, H D], input weights [J_x H D, H D], recurrent weights [J_r, H, D, D].
Tensors rnn_list(const std::string& cell, const RnnShape& s, at::ScalarType dtype, at::Device device) {
  const auto in = ops::make_rnn_inputs(cell, {"", s.batch, s.tokens, s.heads, s.width}, dtype);
  const int64_t size = s.heads * s.width, gates = in.wx.size(2);
  auto generator = at::detail::createCPUGenerator(2);
  const auto normal = [&](at::IntArrayRef shape) {
    return at::randn(shape, generator, at::TensorOptions(at::kFloat)).to(dtype);
  };
  const auto weights = normal({gates * size, size}) / std::sqrt(static_cast<double>(size));
  Tensors list{normal({s.batch, s.tokens, size}), weights, in.recurrent};
  for (auto& x : list) x = x.to(device);
  return list;
}

ops::Rnn rnn_problem(const std::string& cell, const Tensors& x) {
  const int64_t heads = x[2].size(1), width = x[2].size(2);
  return {.cell = cell, .wx = at::linear(x[0], x[1]).unflatten(-1, {-1, heads, width}), .recurrent = x[2]};
}

// One torch layer for each head, all with the whole input.
template <class Layer>
Tensors torch_layers(const Tensors& x, const Layer& layer) {
  const int64_t heads = x[2].size(1), width = x[2].size(2);
  const auto weights = x[1].unflatten(0, {-1, heads, width});
  const auto zeros = at::zeros({1, x[0].size(0), width}, x[0].options());
  Tensors outputs;
  for (int64_t i = 0; i < heads; ++i)
    outputs.push_back(layer(zeros, weights.select(1, i).flatten(0, 1), x[2].select(1, i).flatten(0, 1)));
  return {heads == 1 ? outputs[0] : at::cat(outputs, 2)};
}

Tensors torch_lstm(const Tensors& x) {
  return torch_layers(x, [&](const at::Tensor& zeros, const at::Tensor& input, const at::Tensor& recurrent) {
    return std::get<0>(at::lstm(x[0], {zeros, zeros}, {input, recurrent}, false, 1, 0.0,
                                c10::GradMode::is_enabled(), false, true));
  });
}

// Recurrent gates in the order n, r, u; torch has r, u, n.
Tensors torch_gru(const Tensors& x) {
  return torch_layers(x, [&](const at::Tensor& zeros, const at::Tensor& input, const at::Tensor& recurrent) {
    return std::get<0>(at::gru(x[0], zeros, {input, recurrent.roll(-zeros.size(2), 0)}, false, 1, 0.0,
                               c10::GradMode::is_enabled(), false, true));
  });
}

OpCase rnn_case(const std::string& cell, const RnnShape& timed, const RnnShape& checked, at::ScalarType dtype,
                at::Device device) {
  OpCase result;
  result.op = "linear + " + cell;
  result.shape = fmt::format("{}x{}, {} heads, {}", timed.batch, timed.tokens, timed.heads, timed.width);
  result.weft = [cell](const Tensors& x) {
    const auto h = ops::rnn(rnn_problem(cell, x)).h;
    return Tensors{h.flatten(2)};
  };
  result.reference = [cell](const Tensors& x) {
    const auto h = ops::reference::rnn(rnn_problem(cell, x)).h;
    return Tensors{h.flatten(2)};
  };
  result.peer = "eager loop over tokens (there is no parallel form)";
  result.peer_call = result.reference;
  if (cell == "lstm" || cell == "gru") {
    result.peer = fmt::format("at::{}, one for each head", cell);
    result.peer_call = cell == "lstm" ? torch_lstm : torch_gru;
  }
  result.inputs = [=] { return rnn_list(cell, timed, dtype, device); };
  result.check_inputs = [=] { return rnn_list(cell, checked, dtype, device); };
  result.bound = result.gradient_bound = ops::rnn_bound(dtype);
  const auto& sizes = ops::find_cell(cell);
  const double rows = static_cast<double>(timed.batch * timed.tokens),
               size = static_cast<double>(timed.heads * timed.width);
  result.flops = 2 * rows * size *
                 (static_cast<double>(sizes.input_gates) * size +
                  static_cast<double>(sizes.recurrent_gates) * static_cast<double>(timed.width));
  result.step = timed.tokens == 1;
  return result;
}

// Inputs as a list: wx, parameters.
ops::Rnn diagonal_problem(const std::string& cell, const Tensors& x) {
  return {.cell = cell, .wx = x[0], .parameters = x[1]};
}

Tensors token_by_token(const std::string& cell, const Tensors& x) {
  return {ops::rnn(diagonal_problem(cell, x)).h};
}

// newton: rnn_parallel, beside our own kernel that goes token by token; else that one, alone.
OpCase diagonal_case(const std::string& cell, bool newton, const RnnShape& timed, at::ScalarType dtype,
                     at::Device device) {
  const auto list = [=](const RnnShape& s) {
    const auto in = ops::make_rnn_inputs(cell, {"", s.batch, s.tokens, s.heads, s.width}, dtype);
    return Tensors{in.wx.to(device), in.parameters.to(device)};
  };
  OpCase result;
  result.op = cell + (newton ? " newton" : "");
  result.shape = fmt::format("{}x{}, {} channels", timed.batch, timed.tokens, timed.heads * timed.width);
  result.reference = [cell](const Tensors& x) {
    return Tensors{ops::reference::rnn(diagonal_problem(cell, x)).h};
  };
  result.weft = [cell](const Tensors& x) { return token_by_token(cell, x); };
  if (newton) {
    result.peer_call = result.weft;
    result.weft = [cell](const Tensors& x) {
      return Tensors{ops::rnn_parallel(diagonal_problem(cell, x)).h};
    };
    result.peer = "ops::rnn, token by token";
  }
  result.inputs = [=] { return list(timed); };
  result.check_inputs = [=] { return list({2, 75, 2, 35}); };
  result.bound = result.gradient_bound = ops::rnn_bound(dtype);
  constexpr double kFlops = 80;  // of a cell, exponentials included
  result.flops = kFlops * static_cast<double>(timed.batch * timed.tokens * timed.heads * timed.width);
  return result;
}

}  // namespace

std::vector<OpCase> rnn_op_cases(at::ScalarType dtype, at::Device device) {
  return {rnn_case("lstm", {16, 512, 1, 768}, {3, 33, 1, 24}, dtype, device),
          rnn_case("lstm", {16, 512, 12, 64}, {3, 33, 2, 24}, dtype, device),
          rnn_case("lstm", {16, 128, 1, 256}, {3, 33, 1, 24}, dtype, device),
          rnn_case("gru", {16, 128, 1, 256}, {3, 33, 1, 24}, dtype, device),
          rnn_case("slstm", {16, 128, 4, 64}, {3, 33, 2, 12}, dtype, device),
          rnn_case("lstm", {1, 1, 1, 512}, {3, 1, 1, 24}, dtype, device),
          diagonal_case("para_gru", false, {8, 512, 1, 1024}, dtype, device),
          diagonal_case("para_gru", true, {8, 512, 1, 1024}, dtype, device),
          diagonal_case("para_gru", true, {1, 4096, 1, 8}, dtype, device),
          diagonal_case("para_lstm", true, {8, 512, 1, 1024}, dtype, device),
          diagonal_case("para_lstm", true, {1, 4096, 1, 8}, dtype, device)};
}

}  // namespace weft::bench
