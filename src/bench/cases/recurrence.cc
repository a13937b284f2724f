// Diagonal scans, the selective scan, and recurrences with a full matrix.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include "bench/op_case.h"
#include "bench/peers/eager.h"
#include "ops/rnn/rnn.h"
#include "ops/rnn/rnn_cases.h"
#include "ops/scan/scan.h"
#include "ops/scan/scan_cases.h"

namespace weft::bench {
namespace {

Tensors moved(Tensors list, at::Device device) {
  for (auto& x : list)
    if (x.defined()) x = x.to(device);
  return list;
}

OpCase scan_case(const ops::ScanCase& timed, at::ScalarType dtype, at::Device device) {
  const auto list = [dtype, device](const ops::ScanCase& c) {
    const auto in = ops::make_scan_inputs(c, dtype);
    return moved({in.a, in.b}, device);
  };
  const ops::ScanCase checked{"", 2, 75, 37, timed.complex};
  OpCase result;
  result.op = "scan " + timed.name;
  result.shape = fmt::format("{}x{}, {} channels", timed.batch, timed.tokens, timed.channels);
  result.peer = "two-level loop, sqrt(T) steps each";
  result.weft = [](const Tensors& x) { return Tensors{ops::scan(x[0], x[1]).h}; };
  result.reference = [](const Tensors& x) { return Tensors{ops::reference::scan(x[0], x[1], {}, {}).h}; };
  result.peer_call = [](const Tensors& x) { return Tensors{peers::two_level_scan(x[0], x[1])}; };
  result.inputs = [=] { return list(timed); };
  result.check_inputs = [=] { return list(checked); };
  result.bound = result.gradient_bound = ops::scan_bound(dtype);
  result.flops = timed.flops();
  return result;
}

ops::SelectiveScan problem_of(const Tensors& x) {
  return {.u = x[0],
          .delta = x[1],
          .a = x[2],
          .b = x[3],
          .c = x[4],
          .skip = x[5],
          .initial_state = x.size() > 6 ? x[6] : at::Tensor()};
}

OpCase selective_case(const ops::SelectiveCase& timed, const ops::SelectiveCase& checked,
                      at::ScalarType dtype, at::Device device) {
  const auto list = [dtype, device](const ops::SelectiveCase& c) {
    const auto in = ops::make_selective_inputs(c, dtype);
    Tensors tensors{in.u, in.delta, in.a, in.b, in.c, in.skip};
    if (c.initial) tensors.push_back(in.initial);
    return moved(tensors, device);
  };
  OpCase result;
  result.op = "selective scan";
  result.shape = fmt::format("{}x{}, {} ch x {}", timed.batch, timed.tokens, timed.channels, timed.states);
  result.inputs = [=] { return list(timed); };
  result.check_inputs = [=] { return list(checked); };
  result.bound = result.gradient_bound = ops::scan_bound(dtype);
  result.flops = timed.flops();
  return result;
}

OpCase selective_sequence(at::ScalarType dtype, at::Device device) {
  auto result = selective_case({"", 1, 512, 1024, 16, true}, {"", 2, 75, 37, 5, true}, dtype, device);
  result.peer = "two-level loop over all states";
  result.weft = [](const Tensors& x) { return Tensors{ops::selective_scan(problem_of(x)).y}; };
  result.reference = [](const Tensors& x) {
    return Tensors{ops::reference::selective_scan(problem_of(x)).y};
  };
  result.peer_call = [](const Tensors& x) {
    return Tensors{peers::selective_scan(x[0], x[1], x[2], x[3], x[4], x[5])};
  };
  return result;
}

OpCase selective_step(at::ScalarType dtype, at::Device device) {
  auto result =
      selective_case({"", 1, 1, 4096, 16, true, true}, {"", 3, 1, 37, 5, true, true}, dtype, device);
  result.step = true;
  result.peer = "eager step";
  result.weft = [](const Tensors& x) {
    const auto y = ops::selective_scan_step(problem_of(x));
    return Tensors{y.y, y.state};
  };
  result.reference = [](const Tensors& x) {
    const auto y = ops::reference::selective_scan(problem_of(x));
    return Tensors{y.y, y.state};
  };
  result.peer_call = [](const Tensors& x) {
    const auto step = x[1].select(1, 0).to(at::kFloat).unsqueeze(-1), u = x[0].select(1, 0).to(at::kFloat);
    auto state = x[6];
    state.mul_((step * x[2]).exp()).add_(step * u.unsqueeze(-1) * x[3].to(at::kFloat));  // b is [B, 1, N]
    const auto y = at::matmul(state, x[4].to(at::kFloat).mT()).squeeze(-1) + x[5] * u;
    return Tensors{y.unsqueeze(1).to(x[0].scalar_type()), state};
  };
  return result;
}

struct RnnShape {
  int64_t batch, tokens, heads, width;
};

// Inputs as a list: x [B, T, H D], input weights [J H D, H D], recurrent weights [J, H, D, D].
Tensors rnn_list(const std::string& cell, const RnnShape& s, at::ScalarType dtype, at::Device device) {
  const auto in = ops::make_rnn_inputs(cell, {"", s.batch, s.tokens, s.heads, s.width}, dtype);
  const int64_t size = s.heads * s.width, gates = in.recurrent.size(0);
  auto generator = at::detail::createCPUGenerator(2);
  const auto normal = [&](at::IntArrayRef shape) {
    return at::randn(shape, generator, at::TensorOptions(at::kFloat)).to(dtype);
  };
  const auto weights = normal({gates * size, size}) / std::sqrt(static_cast<double>(size));
  return moved({normal({s.batch, s.tokens, size}), weights, in.recurrent}, device);
}

ops::Rnn rnn_problem(const std::string& cell, const Tensors& x) {
  const int64_t gates = x[2].size(0), heads = x[2].size(1), width = x[2].size(2);
  return {.cell = cell, .wx = at::linear(x[0], x[1]).unflatten(-1, {gates, heads, width}), .recurrent = x[2]};
}

Tensors torch_lstm(const Tensors& x) {
  const int64_t size = x[0].size(2);
  const auto zeros = at::zeros({1, x[0].size(0), size}, x[0].options());
  const auto recurrent = x[2].reshape({4 * size, size});  // of one head
  return {std::get<0>(at::lstm(x[0], {zeros, zeros}, {x[1], recurrent}, false, 1, 0.0,
                               c10::GradMode::is_enabled(), false, true))};
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
  result.peer = cell == "lstm" ? "at::lstm" : "eager loop over tokens (there is no parallel form)";
  result.peer_call = cell == "lstm" ? TensorFunction(torch_lstm) : result.reference;
  result.inputs = [=] { return rnn_list(cell, timed, dtype, device); };
  result.check_inputs = [=] { return rnn_list(cell, checked, dtype, device); };
  result.bound = result.gradient_bound = ops::rnn_bound(dtype);
  const double rows = static_cast<double>(timed.batch * timed.tokens),
               size = static_cast<double>(timed.heads * timed.width);
  result.flops = 2 * rows * 4 * size * (size + static_cast<double>(timed.width));
  result.step = timed.tokens == 1;
  return result;
}

}  // namespace

std::vector<OpCase> recurrence_op_cases(at::ScalarType dtype, at::Device device) {
  return {scan_case({"real", 2, 1024, 1024}, dtype, device),
          scan_case({"complex", 1, 1024, 512, true}, dtype, device),
          selective_sequence(dtype, device),
          selective_step(dtype, device),
          rnn_case("lstm", {16, 128, 1, 256}, {3, 33, 1, 24}, dtype, device),
          rnn_case("slstm", {16, 128, 4, 64}, {3, 33, 2, 12}, dtype, device),
          rnn_case("lstm", {1, 1, 1, 512}, {3, 1, 1, 24}, dtype, device)};
}

}  // namespace weft::bench
