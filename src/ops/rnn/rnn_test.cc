#include "ops/rnn/rnn.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "ops/kernel_choice.h"
#include "ops/recurrence_check.h"
#include "ops/rnn/device_check.h"
#include "ops/rnn/rnn_cases.h"
#include "ops/scan/scan.h"

namespace weft::ops {
namespace {

using Tensors = std::vector<at::Tensor>;

const char* const kCells[] = {"elman", "gru", "lstm", "para_gru", "para_lstm", "slstm"};
const char* const kMatrixCells[] = {"elman", "gru", "lstm", "slstm"};

Tensors list(const Rnn& in) {
  return {in.wx, in.recurrent, in.bias, in.parameters, in.initial_state, in.starts};
}

TensorFunction run(const std::string& cell) {
  return [cell](const Tensors& x) {
    const auto result = rnn({cell, x[0], x[1], x[2], x[3], x[4], x[5]});
    return Tensors{result.h, result.state};
  };
}

TensorFunction run_reference(const std::string& cell) {
  return [cell](const Tensors& x) {
    const auto result = reference::rnn({cell, x[0], x[1], x[2], x[3], x[4], x[5]});
    return Tensors{result.h, result.state};
  };
}

// Tokens [begin, end), continuing from `state`.
Tensors tokens(const Tensors& x, int64_t begin, int64_t end, const at::Tensor& state) {
  return {
      x[0].slice(1, begin, end), x[1], x[2], x[3], state, x[5].defined() ? x[5].slice(1, begin, end) : x[5]};
}

TEST(Rnn, KernelsMatchTheReference) {
  for (const char* cell : kCells)
    for (const auto& c : rnn_cases())
      expect_kernels_match(fmt::format("{} {}", cell, c.name), run(cell), run_reference(cell),
                           list(make_rnn_inputs(cell, c)), rnn_bound(at::kFloat));
}

// The widths are those that CUDA kernels cut differently.
TEST(Rnn, HalfPrecision) {
  const RnnCase cases[] = {
      {"odd", 3, 40, 2, 9, true, true, true},      {"small head", 9, 21, 2, 40, true, true, true},
      {"head", 3, 9, 2, 128, false, false, true},  {"two tokens", 2, 2, 1, 64, true, true},
      {"cluster", 9, 7, 2, 200, true, true, true}, {"large cluster", 3, 11, 1, 344, true, true, true},
      {"wide", 2, 6, 1, 768, true, true, true},    {"wide, many", 47, 5, 1, 520, true, true, true}};
  for (const auto type : {at::kBFloat16, at::kHalf})
    for (const char* cell : kCells)
      for (const auto& c : cases)
        on_each_device([&](c10::DeviceType device) {
          const auto in = on_device(list(make_rnn_inputs(cell, c, type)), device);
          EXPECT_EQ(run(cell)(in)[0].scalar_type(), type);
          EXPECT_EQ(run(cell)(in)[1].scalar_type(), at::kFloat);
          expect_matches(fmt::format("{} {}", cell, c.name), run(cell), run_reference(cell), in,
                         rnn_bound(type));
        });
}

TEST(Rnn, MixedTypes) {
  on_each_device([](c10::DeviceType device) {
    auto in = make_rnn_inputs("lstm", {"", 3, 12, 2, 16, true, true, true}, at::kBFloat16);
    in.recurrent = in.recurrent.to(at::kFloat);
    in.bias = in.bias.to(at::kFloat);
    expect_matches("fp32 weights", run("lstm"), run_reference("lstm"), on_device(list(in), device),
                   rnn_bound(at::kBFloat16));
  });
}

TEST(Rnn, ReferenceGradientsAreTheDerivatives) {
  const Threads one(1);
  const RnnCase c{"", 2, 5, 2, 3, true, true, true};
  for (const char* cell : {"elman", "gru", "lstm", "para_gru", "para_lstm"})
    expect_gradients(run(cell), list(make_rnn_inputs(cell, c, at::kDouble)));
}

// The stabiliser counts as a constant, so only h from a fresh state is differentiated exactly.
TEST(Rnn, SlstmGradientsOfHAreTheDerivatives) {
  const Threads one(1);
  auto in = list(make_rnn_inputs("slstm", {"", 1, 4, 2, 2, true, false, true}, at::kDouble));
  expect_gradients([](const Tensors& x) { return Tensors{run("slstm")(x)[0]}; }, in);
}

// What torch takes: with the identity as input weights, wx is the input of its layer.
struct TorchLayer {
  at::Tensor input, state;             // [B, T, J_x D], [1, B, D]
  at::Tensor identity, matrix;         // input and recurrent weights
  at::Tensor no_bias, recurrent_bias;  // [J_x D]
};

TorchLayer torch_layer(const Rnn& in) {
  const int64_t width = in.wx.size(4), size = in.wx.size(2) * width;
  const auto zeros = at::zeros({size}, in.wx.options());
  return {in.wx.reshape({in.wx.size(0), in.wx.size(1), size}),
          in.initial_state[0].transpose(0, 1).contiguous(),
          at::eye(size, in.wx.options()),
          in.recurrent.reshape({-1, width}),
          zeros,
          zeros};
}

// Calls `compare` with inputs in fp64, for the reference, and in fp32 for each kernel.
template <class Compare>
void against_torch(const char* cell, const Compare& compare) {
  const Threads one(1);
  const RnnCase c{"", 3, 19, 1, 24, true, true};
  compare(make_rnn_inputs(cell, c, at::kDouble), 1e-12);
  for (const Kernel kernel : cpu_kernels()) {
    const ForceKernel force(kernel);
    compare(make_rnn_inputs(cell, c), 1e-5);
  }
}

TEST(Rnn, LstmEqualsTorch) {
  against_torch("lstm", [](const Rnn& in, double bound) {
    auto layer = torch_layer(in);
    layer.recurrent_bias = in.bias.flatten();  // the order of gates is the same: torch calls z g
    const auto cell = in.initial_state[1].transpose(0, 1).contiguous();
    const auto [out, h, c] = at::lstm(layer.input, {layer.state, cell},
                                      {layer.identity, layer.matrix, layer.no_bias, layer.recurrent_bias},
                                      true, 1, 0.0, false, false, true);
    const auto result = rnn(in);
    expect_close("h", result.h.squeeze(2), out, bound);
    expect_close("last h", result.state[0].squeeze(1), h[0], bound);
    expect_close("last c", result.state[1].squeeze(1), c[0], bound);
  });
}

TEST(Rnn, GruEqualsTorch) {
  against_torch("gru", [](const Rnn& in, double bound) {
    auto layer = torch_layer(in);
    const auto of_h = [](const at::Tensor& x) { return at::cat({x[1], x[2], x[0]}); };  // r, u, n
    layer.matrix = of_h(in.recurrent.squeeze(1));
    layer.recurrent_bias = of_h(in.bias.squeeze(1));
    const auto input_bias = at::cat({layer.no_bias.slice(0, 0, 48), in.bias[3][0]});
    const auto [out, h] =
        at::gru(layer.input, layer.state, {layer.identity, layer.matrix, input_bias, layer.recurrent_bias},
                true, 1, 0.0, false, false, true);
    const auto result = rnn(in);
    expect_close("h", result.h.squeeze(2), out, bound);
    expect_close("last h", result.state[0].squeeze(1), h[0], bound);
  });
}

TEST(Rnn, ElmanEqualsTorch) {
  against_torch("elman", [](const Rnn& in, double bound) {
    auto layer = torch_layer(in);
    layer.recurrent_bias = in.bias.flatten();
    const auto [out, h] = at::rnn_tanh(layer.input, layer.state,
                                       {layer.identity, layer.matrix, layer.no_bias, layer.recurrent_bias},
                                       true, 1, 0.0, false, false, true);
    const auto result = rnn(in);
    expect_close("h", result.h.squeeze(2), out, bound);
    expect_close("last h", result.state[0].squeeze(1), h[0], bound);
  });
}

TEST(Rnn, HeadsEqualABlockDiagonalMatrix) {
  for (const char* cell : kMatrixCells)
    on_each_device([&](c10::DeviceType device) {
      const auto in = moved(make_rnn_inputs(cell, {"", 3, 12, 3, 5, true, true}), device);
      auto dense = in;
      const auto merged = [](const at::Tensor& x) {
        return x.flatten(-2).unsqueeze(-2);
      };  // [.., H, D] -> [.., 1, H D]
      dense.wx = merged(in.wx);
      dense.bias = merged(in.bias);
      dense.initial_state = merged(in.initial_state);
      Tensors gates;
      for (int64_t j = 0; j < in.recurrent.size(0); ++j)
        gates.push_back(at::block_diag(in.recurrent[j].unbind(0)));
      dense.recurrent = at::stack(gates).unsqueeze(1);
      expect_close(cell, rnn(in).h.flatten(-2), rnn(dense).h.squeeze(2), 1e-5);
    });
}

TEST(Rnn, LstmWithoutFeedbackIsAScan) {
  auto in = make_rnn_inputs("lstm", {"", 2, 30, 2, 9, false, true, true});
  in.recurrent.zero_();
  const auto gate = [&](int64_t j) { return in.wx.select(2, j).flatten(-2); };  // [B, T, H D]
  const auto c = scan(at::sigmoid(gate(1)), at::sigmoid(gate(0)) * at::tanh(gate(2)),
                      in.initial_state[1].flatten(-2), in.starts);
  const auto result = rnn(in);
  expect_close("h", result.h.flatten(-2), at::sigmoid(gate(3)) * at::tanh(c.h), 1e-5);
  expect_close("c", result.state[1].flatten(-2), c.state, 1e-5);
}

TEST(Rnn, SlstmEqualsItsUnstabilisedForm) {
  const auto in = make_rnn_inputs("slstm", {"", 2, 12, 2, 5, true}, at::kDouble);
  auto h = at::zeros({2, 2, 5}, at::kDouble), c = h, n = h;
  Tensors outputs;
  for (int64_t t = 0; t < 12; ++t) {
    const auto g = in.wx.select(1, t).transpose(0, 1) + in.bias.unsqueeze(1) +
                   at::einsum("jhoi,bhi->jbho", {in.recurrent, h});
    c = at::sigmoid(g[1]) * c + at::exp(g[0]) * at::tanh(g[2]);
    n = at::sigmoid(g[1]) * n + at::exp(g[0]);
    h = at::sigmoid(g[3]) * c / n;
    outputs.push_back(h);
  }
  expect_close("h", reference::rnn(in).h, at::stack(outputs, 1), 1e-12);
}

TEST(Rnn, SlstmIgnoresAConstantInTheInputGate) {
  on_each_device([](c10::DeviceType device) {
    auto in = moved(make_rnn_inputs("slstm", {"", 2, 30, 2, 9, true}), device);
    const auto h = rnn(in).h;
    in.wx.select(2, 0).add_(200);           // e^200 is beyond fp32
    expect_close("h", rnn(in).h, h, 1e-4);  // 200 + x keeps x to 8e-6
  });
}

TEST(Rnn, PiecesEqualTheWhole) {
  for (const char* cell : kCells)
    for (const auto& c : rnn_cases())
      on_each_device([&](c10::DeviceType device) {
        if (c.tokens < 9) return;
        const auto in = on_device(list(make_rnn_inputs(cell, c)), device);
        const auto whole = run(cell)(in);
        auto state = in[4];
        Tensors pieces;
        for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 5}, {5, 6}, {6, 6}, {6, c.tokens}}) {
          const auto piece = run(cell)(tokens(in, begin, end, state));
          pieces.push_back(piece[0]);
          state = piece[1];
        }
        expect_equal(c.name, {at::cat(pieces, 1), state}, whole);
      });
}

// The gradient through a cut equals that of the whole sequence.
TEST(Rnn, GradientsPassThroughACut) {
  for (const char* cell : {"elman", "gru", "lstm", "para_gru", "para_lstm"}) {
    const TensorFunction cut = [cell](const Tensors& x) {
      const auto first = run(cell)(tokens(x, 0, 7, x[4]));
      const auto second = run(cell)(tokens(x, 7, 20, first[1]));
      return Tensors{at::cat({first[0], second[0]}, 1), second[1]};
    };
    const auto in = list(make_rnn_inputs(cell, {"", 3, 20, 2, 9, true, true, true}));
    on_each_device([&](c10::DeviceType device) {
      expect_matches(cell, cut, run_reference(cell), on_device(in, device), 1e-5);
    });
  }
}

TEST(Rnn, PackedDocumentsDoNotMix) {
  for (const char* cell : kCells)
    for (const auto type : {at::kFloat, at::kBFloat16})
      for (const int64_t width : {9, 32, 136})
        on_each_device([&](c10::DeviceType device) {
          auto in = on_device(list(make_rnn_inputs(cell, {"", 1, 30, 2, width, true, true}, type)), device);
          in[0].slice(1, 0, 12).fill_(NAN);  // must not reach the second document
          in[5] = at::zeros({1, 30}, in[0].options().dtype(at::kBool));
          in[5][0][12].fill_(true);
          const auto packed = run(cell)(in), alone = run(cell)(tokens(in, 12, 30, {}));
          expect_equal(cell, {packed[0].slice(1, 12), packed[1]}, alone);
        });
}

TEST(Rnn, IsCausal) {
  for (const char* cell : kCells)
    on_each_device([&](c10::DeviceType device) {
      auto in = on_device(list(make_rnn_inputs(cell, {"", 2, 20, 2, 6})), device);
      const auto before = run(cell)(in)[0];
      in[0] = in[0].clone();
      in[0].select(1, 11).add_(1);
      in[0].select(1, 11).select(1, 0).add_(1);
      const auto after = run(cell)(in)[0];
      EXPECT_TRUE(at::equal(before.slice(1, 0, 11), after.slice(1, 0, 11))) << cell;
      EXPECT_FALSE(at::equal(before.select(1, 11), after.select(1, 11))) << cell;
    });
}

TEST(Rnn, ThreadsDoNotChangeResults) {
  for (const char* cell : kCells)
    for (const int64_t width : {20, 270})  // tasks by sequences, and by columns
      expect_thread_independent(run(cell),
                                list(make_rnn_inputs(cell, {"", 19, 12, 1, width, true, true, true})));
}

at::Tensor decay_reference(const at::Tensor& gates, const at::Tensor& states, const at::Tensor&) {
  return (0.5 * states[0] + gates[0]).unsqueeze(0);
}

void decay_forward(const CellStep& x) {
  for (int64_t i = 0; i < x.n; ++i) x.new_states[0][i] = 0.5f * x.states[0][i] + x.gates[0][i];
}

void decay_backward(const CellGradient& x) {
  for (int64_t i = 0; i < x.n; ++i) {
    x.d_gates[0][i] = x.d_new_states[0][i];
    x.d_states[0][i] = 0.5f * x.d_new_states[0][i];
  }
}

// h = p h + wx + R h: the first gate is recurrent, the second has the input.
at::Tensor leaky_reference(const at::Tensor& gates, const at::Tensor& states, const at::Tensor& parameters) {
  return (parameters[0] * states[0] + gates[0] + gates[1]).unsqueeze(0);
}

void leaky_forward(const CellStep& x) {
  for (int64_t i = 0; i < x.n; ++i)
    x.new_states[0][i] = x.parameters[0][i] * x.states[0][i] + x.gates[0][i] + x.gates[1][i];
}

void leaky_backward(const CellGradient& x) {
  for (int64_t i = 0; i < x.n; ++i) {
    x.d_gates[0][i] = x.d_gates[1][i] = x.d_new_states[0][i];
    x.d_states[0][i] = x.parameters[0][i] * x.d_new_states[0][i];
    x.d_parameters[0][i] += x.states[0][i] * x.d_new_states[0][i];
  }
}

TEST(Rnn, CellsOfTheUser) {
  register_cell({"test_decay", 1, 1, decay_reference, decay_forward, decay_backward});
  register_cell({"test_decay_slow", 1, 1, decay_reference});
  Cell leaky{"test_leaky", 2, 1, leaky_reference, leaky_forward, leaky_backward};
  leaky.recurrent_gates = leaky.input_gates = leaky.parameters = 1;
  register_cell(leaky);
  for (const char* cell : {"test_decay", "test_decay_slow", "test_leaky"})
    for (const int64_t width : {7, 260})
      on_each_device([&](c10::DeviceType device) {
        expect_matches(
            cell, run(cell), run_reference(cell),
            on_device(list(make_rnn_inputs(cell, {"", 3, 15, 2, width, true, true, true})), device), 1e-5);
      });
  EXPECT_NE(error_of<InputError>([] {
              register_cell({"lstm", 1, 1, decay_reference});
            }).find("already"),
            std::string::npos);
  leaky.name = "test_unused_gate";
  leaky.gates = 3;
  EXPECT_NE(error_of<InputError>([&] { register_cell(leaky); }).find("each needs one"), std::string::npos);
}

TEST(Rnn, ErrorsNameTheTensor) {
  const auto in = make_rnn_inputs("lstm", {"", 2, 4, 3, 5, true, true});
  const auto message = [&](auto change) {
    auto changed = in;
    change(changed);
    return error_of<InputError>([&] { rnn(changed); });
  };
  EXPECT_EQ(message([](Rnn& x) {
              x.recurrent = at::ones({4, 3, 5, 6});
            }),
            "rnn: recurrent is [4, 3, 5, 6], expected [4, 3, 5, 5]");
  EXPECT_EQ(message([](Rnn& x) {
              x.bias = at::ones({4, 3, 6});
            }),
            "rnn: bias is [4, 3, 6], expected [4, 3, 5]");
  EXPECT_EQ(message([](Rnn& x) {
              x.initial_state = at::ones({2, 3, 5});
            }),
            "rnn: initial_state is [2, 3, 5], expected [2, 2, 3, 5]");
  EXPECT_EQ(message([](Rnn& x) {
              x.starts = at::ones({2, 4});
            }),
            "rnn: starts has type Float, expected Bool");
  EXPECT_EQ(message([](Rnn& x) { x.parameters = at::ones({1, 3, 5}); }), "rnn: cell lstm has no parameters");
  EXPECT_EQ(message([](Rnn& x) {
              x.cell = "para_gru";
              x.wx = at::ones({2, 4, 3, 3, 5});
            }),
            "rnn: cell para_gru has no recurrent matrix");
  EXPECT_NE(message([](Rnn& x) { x.cell = "elman"; }).find("cell elman has 1 gates with inputs"),
            std::string::npos);
  EXPECT_NE(message([](Rnn& x) {
              x.cell = "gru9";
            }).find("registered: elman, gru, lstm, para_gru, para_lstm, slstm"),
            std::string::npos);
}

}  // namespace
}  // namespace weft::ops
