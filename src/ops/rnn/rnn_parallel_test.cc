#include "ops/rnn/rnn_parallel.h"

#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/error.h"
#include "ops/kernel_choice.h"
#include "ops/recurrence_check.h"
#include "ops/rnn/device_check.h"
#include "ops/rnn/rnn_cases.h"

namespace weft::ops {
namespace {

using Tensors = std::vector<at::Tensor>;

const char* const kParallelCells[] = {"para_gru", "para_lstm"};
constexpr double kNever = std::numeric_limits<double>::infinity();

Tensors list(const Rnn& in) { return {in.wx, in.bias, in.parameters, in.initial_state, in.starts}; }
Rnn problem(const std::string& cell, const Tensors& x) { return {cell, x[0], {}, x[1], x[2], x[3], x[4]}; }

TensorFunction run(const std::string& cell, const Newton& newton = {}) {
  return [=](const Tensors& x) {
    const auto result = rnn_parallel(problem(cell, x), newton);
    return Tensors{result.h, result.state};
  };
}

TensorFunction run_reference(const std::string& cell, const Newton& newton = {}) {
  return [=](const Tensors& x) {
    const auto result = reference::rnn_parallel(problem(cell, x), newton);
    return Tensors{result.h, result.state};
  };
}

TensorFunction token_by_token(const std::string& cell) {
  return [cell](const Tensors& x) {
    const auto result = reference::rnn(problem(cell, x));
    return Tensors{result.h, result.state};
  };
}

const std::vector<RnnCase>& parallel_cases() {
  static const std::vector<RnnCase> cases = {
      {"empty", 2, 0, 2, 3, true, true},         {"one", 1, 1, 1, 1},
      {"odd", 3, 17, 2, 5, true, true, true},    {"blocks", 2, 35, 3, 43, true, true, true},
      {"chunk", 1, 32, 1, 64, true, true, true}, {"documents", 2, 100, 1, 70, false, false, true},
      {"narrow", 1, 1030, 1, 2, false, true},
  };
  return cases;
}

// Where it has not converged, Newton's iterates themselves are compared on the CPU; those of the CUDA kernel, which goes
// through a sequence chunk by chunk, are others.
TEST(RnnParallel, KernelsMatchTheReference) {
  for (const char* cell : kParallelCells)
    for (const auto& c : parallel_cases()) {
      const auto in = list(make_rnn_inputs(cell, c));
      expect_kernels_match(fmt::format("{} {}", cell, c.name), run(cell), run_reference(cell), in,
                           rnn_bound(at::kFloat));
      for (const int64_t iterations : {0, 1, 2})
        for (const Kernel kernel : cpu_kernels()) {
          const ForceKernel force(kernel);
          expect_matches(
              fmt::format("{} {}, {} iterations, {}", cell, c.name, iterations, kernel_name(kernel)),
              run(cell, {iterations, kNever}), run_reference(cell, {iterations, kNever}), in,
              rnn_bound(at::kFloat));
        }
    }
}

TEST(RnnParallel, HalfPrecision) {
  for (const auto type : {at::kBFloat16, at::kHalf})
    for (const char* cell : kParallelCells)
      on_each_device([&](c10::DeviceType device) {
        const auto in =
            on_device(list(make_rnn_inputs(cell, {"", 3, 40, 2, 9, true, true, true}, type)), device);
        EXPECT_EQ(run(cell)(in)[0].scalar_type(), type);
        EXPECT_EQ(run(cell)(in)[1].scalar_type(), at::kFloat);
        expect_matches(cell, run(cell), token_by_token(cell), in, rnn_bound(type));
      });
}

TEST(RnnParallel, EqualsTokenByToken) {
  for (const char* cell : kParallelCells)
    for (const auto& c : parallel_cases())
      expect_kernels_match(fmt::format("{} {}", cell, c.name), run(cell), token_by_token(cell),
                           list(make_rnn_inputs(cell, c)), rnn_bound(at::kFloat));
}

TEST(RnnParallel, ReferenceGradientsAreTheDerivatives) {
  const Threads one(1);
  for (const char* cell : kParallelCells)
    expect_gradients(run(cell, {6, kNever}),
                     list(make_rnn_inputs(cell, {"", 2, 6, 2, 2, true, true, true}, at::kDouble)));
}

// Iteration k makes the first k + 1 tokens exact, whatever the cell.
TEST(RnnParallel, IterationsAreExactFromTheFront) {
  for (const char* cell : kParallelCells) {
    auto in = make_rnn_inputs(cell, {"", 2, 5, 1, 6, true, true}, at::kDouble);
    in.parameters = in.parameters * 10;  // far from convergence
    const auto exact = reference::rnn(in).h;
    for (int64_t k = 0; k < 5; ++k)
      expect_close(fmt::format("{} {}", cell, k), rnn_parallel(in, {k, kNever}).h.slice(1, 0, k + 1),
                   exact.slice(1, 0, k + 1), 1e-12);
  }
}

// Weights as the paper draws them: a and p from N(0, 4 / (25 D)), the input part from uniform weights of two
// groups, a bias of 0 to -1 in the first gate.
Rnn paper_inputs(const std::string& cell_name, int64_t tokens, int64_t width) {
  const Cell& cell = find_cell(cell_name);
  auto generator = seeded(5);
  const auto wide = at::TensorOptions(at::kDouble);
  const auto x = at::randn({4, tokens, 2, width / 2}, generator, wide);
  const double reach = std::sqrt(6.0 / static_cast<double>(width));
  const auto weights = (2 * at::rand({2, width / 2, cell.gates, width / 2}, generator, wide) - 1) * reach;
  Rnn in{.cell = cell_name};
  in.wx = at::einsum("btgi,gijo->btjgo", {x, weights}).flatten(3).unsqueeze(3);
  in.parameters = at::randn({cell.parameters, 1, width}, generator, wide) * (2 / std::sqrt(5.0 * width));
  in.bias = at::zeros({cell.gates, 1, width}, wide);
  in.bias[0] = -at::linspace(0, 1, width, wide).unsqueeze(0);
  return in;
}

double newton_error(const Rnn& in, int64_t iterations, const at::Tensor& exact) {
  return (rnn_parallel(in, {iterations, kNever}).h.to(at::kCPU, at::kDouble) - exact)
      .abs()
      .max()
      .item<double>();
}

Rnn in_single(Rnn in) {
  for (auto* x : {&in.wx, &in.parameters, &in.bias}) *x = x->to(at::kFloat);
  return in;
}

// The error falls quadratically: after three iterations fp32 holds the solution.
TEST(RnnParallel, ErrorsAfterEachIteration) {
  const Threads one(1);
  const at::NoGradGuard no_grad;
  const auto errors = [](const std::string& cell, int64_t width, const std::vector<double>& largest) {
    const auto in = paper_inputs(cell, 512, width);
    const auto exact = reference::rnn(in).h;
    for (size_t k = 0; k < largest.size(); ++k) {
      const double found = newton_error(in, static_cast<int64_t>(k), exact);
      EXPECT_LE(found, largest[k]) << cell << ", iteration " << k;
      on_each_device([&](c10::DeviceType device) {
        EXPECT_NEAR(newton_error(moved(in_single(in), device), static_cast<int64_t>(k), exact), found, 1e-6)
            << cell << ", iteration " << k << " in fp32";
      });
    }
  };
  errors("para_gru", 256, {1, 6e-2, 2e-4, 3e-9, 2e-15});
  errors("para_lstm", 128, {1.2, 2e-1, 1e-3, 3e-8});
}

TEST(RnnParallel, LinearCellsTakeOneIteration) {
  Cell linear{"test_linear", 1, 1,
              [](const at::Tensor& gates, const at::Tensor& states, const at::Tensor& parameters) {
                return parameters * states + gates;
              }};
  linear.recurrent_gates = 0;
  linear.parameters = 1;
  register_cell(linear);
  const auto in = make_rnn_inputs("test_linear", {"", 2, 40, 2, 3, true, true, true}, at::kDouble);
  expect_close("h", rnn_parallel(in, {1, kNever}).h, reference::rnn(in).h, 1e-14);
  EXPECT_LT(rnn_parallel(in, {1, kNever}).residual.item<double>(), 1e-14);
}

TEST(RnnParallel, FallsBackWhereNewtonDoesNotConverge) {
  for (const char* cell : kParallelCells) {
    const auto drawn = make_rnn_inputs(cell, {"", 2, 90, 2, 40, true, true, true});
    for (const Kernel kernel : runnable_kernels()) {
      const ForceKernel force(kernel);
      auto in = drawn;
      in.wx = in.wx.clone();
      in.parameters = in.parameters.clone();
      in.parameters.select(1, 0).mul_(8);
      in = moved(in, device_of(kernel));
      const auto result = rnn_parallel(in);
      EXPECT_GT(result.residual.item<double>(), 1e-2) << cell;
      expect_close(cell, result.h, rnn(in).h, 1e-5);
      expect_close(cell, result.state, rnn(in).state, 1e-5);
    }
    on_each_device([&](c10::DeviceType device) {
      auto in = moved(drawn, device);
      in.wx = in.wx.clone();
      in.wx.select(1, 3).fill_(NAN);
      EXPECT_TRUE(std::isinf(rnn_parallel(in).residual.item<double>())) << cell;
    });
  }
}

TEST(RnnParallel, PiecesEqualTheWhole) {
  for (const char* cell : kParallelCells)
    on_each_device([&](c10::DeviceType device) {
      const auto in = moved(make_rnn_inputs(cell, {"", 2, 50, 2, 9, true, true, true}), device);
      const auto whole = rnn_parallel(in);
      Rnn piece = in;
      Tensors pieces;
      for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 20}, {20, 21}, {21, 21}, {21, 50}}) {
        piece.wx = in.wx.slice(1, begin, end);
        piece.starts = in.starts.slice(1, begin, end);
        const auto result = rnn_parallel(piece);
        pieces.push_back(result.h);
        piece.initial_state = result.state;
      }
      expect_close("h", at::cat(pieces, 1), whole.h, 1e-5);
      expect_close("state", piece.initial_state, whole.state, 1e-5);
    });
}

TEST(RnnParallel, ThreadsDoNotChangeResults) {
  for (const char* cell : kParallelCells)
    expect_thread_independent(run(cell), list(make_rnn_inputs(cell, {"", 5, 40, 3, 50, true, true, true})));
}

TEST(RnnParallel, ErrorsNameTheProblem) {
  const auto lstm = make_rnn_inputs("lstm", {"", 2, 4, 3, 5});
  EXPECT_NE(error_of<InputError>([&] { rnn_parallel(lstm); }).find("has a recurrent matrix"),
            std::string::npos);
  auto in = make_rnn_inputs("para_gru", {"", 2, 4, 3, 5});
  EXPECT_EQ(error_of<InputError>([&] { rnn_parallel(in, {-1}); }),
            "rnn_parallel: iterations is -1, expected at least 0");
  in.parameters = at::ones({3, 5});
  EXPECT_EQ(error_of<InputError>([&] { rnn_parallel(in); }),
            "rnn_parallel: parameters is [3, 5], expected [3, 3, 5]");
}

}  // namespace
}  // namespace weft::ops
