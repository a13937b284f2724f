// Diagonal scans and the selective scan.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <fmt/format.h>

#include "bench/op_case.h"
#include "bench/peers/eager.h"
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

OpCase matrix_scan_case(at::ScalarType dtype, at::Device device) {
  const ops::MatrixScanCase timed{"", 1, 1024, 512}, checked{"", 2, 75, 37};
  const auto list = [dtype, device](const ops::MatrixScanCase& c) {
    const auto in = ops::make_matrix_scan_inputs(c, dtype);
    return moved({in.a, in.b}, device);
  };
  OpCase result;
  result.op = "matrix scan";
  result.shape = fmt::format("{}x{}, {} pairs", timed.batch, timed.tokens, timed.channels);
  result.weft = [](const Tensors& x) { return Tensors{ops::matrix_scan(x[0], x[1]).h}; };
  result.reference = [](const Tensors& x) {
    return Tensors{ops::reference::matrix_scan(x[0], x[1], {}, {}).h};
  };
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
  auto result = selective_case({"", 1, 512, 4096, 16, true}, {"", 2, 75, 37, 5, true}, dtype, device);
  result.external = "mamba1_scan_4096x16_512";
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
  result.external = "mamba1_step_4096x16";
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

}  // namespace

std::vector<OpCase> recurrence_op_cases(at::ScalarType dtype, at::Device device) {
  return {scan_case({"real", 2, 1024, 1024}, dtype, device),
          scan_case({"complex", 1, 1024, 512, true}, dtype, device), matrix_scan_case(dtype, device),
          selective_sequence(dtype, device), selective_step(dtype, device)};
}

}  // namespace weft::bench
