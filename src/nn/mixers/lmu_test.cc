#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>

#include <gtest/gtest.h>

#include "nn/conformance.h"
#include "nn/mixers/legendre.h"

namespace weft {
namespace {

at::Tensor matrix(std::vector<double> values, int64_t columns) {
  return at::tensor(values).view({-1, columns});
}

TEST(LegendreMemory, ContinuousMatrices) {
  const auto m = legendre_memory(4, 4);
  EXPECT_TRUE(at::equal(m.a, matrix({-.25, -.25, -.25, -.25, .75, -.75, -.75, -.75, -1.25, 1.25, -1.25, -1.25,
                                     1.75, -1.75, 1.75, -1.75},
                                    4)));
  EXPECT_TRUE(at::equal(m.b, at::tensor({.25, -.75, 1.25, -1.75})));
}

TEST(LegendreMemory, HeldInput) {
  const auto m = discretised(legendre_memory(4, 4));
  const auto a = matrix({.75513, -.19139, -.09352, -.002614, .57417, .27448, -.393825, -.046802, -.467599,
                         .656375, -.146317, -.260945, .0183, -.109205, .365323, .005422},
                        4);
  EXPECT_TRUE(at::allclose(m.a, a, 0, 1e-5)) << m.a;
  EXPECT_TRUE(at::allclose(m.b, at::tensor({.24487, -.57417, .467599, -.0183}), 0, 1e-5)) << m.b;
}

TEST(LegendreMemory, Forgets) {
  const auto radius = [](int64_t order, double window) {
    return at::linalg_eigvals(discretised(legendre_memory(order, window)).a).abs().max().item<double>();
  };
  EXPECT_NEAR(radius(6, 100), 0.9604, 1e-4);
  EXPECT_NEAR(radius(12, 100), 0.9447, 1e-4);
  EXPECT_NEAR(radius(256, 128), 0.861, 1e-3);
}

TEST(LegendreMemory, ReadsBackTheDelayedInput) {
  const double window = 100, period = 150;
  for (const int64_t order : {6, 12}) {
    const auto memory = discretised(legendre_memory(order, window));
    auto m = at::zeros({order}, at::kDouble);
    const auto u = [&](double t) { return std::sin(2 * M_PI * t / period); };
    for (const double r : {0.0, 0.25, 0.5, 0.75, 1.0}) {
      m.zero_();
      double squares = 0;
      int64_t count = 0;
      for (int64_t t = 0; t < 900; ++t) {
        m = at::mv(memory.a, m) + memory.b * u(static_cast<double>(t));
        if (t < 300) continue;
        const double z = 2 * r - 1;
        double before = 1, legendre = z, read = m[0].item<double>() + z * m[1].item<double>();
        for (int64_t i = 2; i < order; ++i) {
          const double k = static_cast<double>(i);
          const double next = ((2 * k - 1) * z * legendre - (k - 1) * before) / k;
          before = legendre;
          legendre = next;
          read += legendre * m[i].item<double>();
        }
        const double error = read - u(static_cast<double>(t) - r * window);
        squares += error * error;
        ++count;
      }
      const double rms = std::sqrt(squares / static_cast<double>(count));
      EXPECT_LT(rms, 0.02) << "order " << order << ", delay " << r;
    }
  }
}

TEST(LegendreMemory, TablesArePowers) {
  const auto memory = discretised(legendre_memory(5, 20));
  const auto tables = legendre_tables(memory, 16);
  auto power = at::eye(5, at::kDouble);
  for (int64_t t = 0; t < 16; ++t) {
    EXPECT_TRUE(at::allclose(tables.response.select(1, t), at::mv(power, memory.b), 0, 1e-13)) << t;
    power = at::matmul(memory.a, power);
    if (t == 7) {
      EXPECT_TRUE(at::allclose(tables.powers[3], power, 0, 1e-13));
    }
  }
  EXPECT_TRUE(at::allclose(tables.powers[4], power, 0, 1e-13));
}

std::unique_ptr<SequenceMixer> mixer_of(const std::string& options, int64_t width) {
  auto mixer = make_mixer(Node::parse("{mixer: lmu" + options + "}", "test"), Site{.width = width});
  mixer->initialize(3);
  mixer->to(at::kDouble);
  return mixer;
}

TEST(Lmu, ParametersAreTheProjections) {
  // Of LMUFormer for speech: memory, hidden and width 256.
  EXPECT_EQ(mixer_of("", 256)->parameter_count(), (256 + 1) + (512 * 256 + 256) + (256 * 256 + 256));
}

// Long spans are cut inside; the recurrence by hand, token by token.
TEST(Lmu, IsTheRecurrence) {
  const at::NoGradGuard no_grad;
  const int64_t width = 3, order = 5, tokens = 600;
  auto mixer = mixer_of(", memory: 5, hidden: 4, window: 40, memory_channels: 2", width);
  auto random = at::make_generator<at::CPUGeneratorImpl>(1);
  std::map<std::string, at::Tensor> p;
  for (const auto& [name, parameter] : mixer->parameters()) {
    parameter->value.normal_(0, 0.7, random);
    p[name] = parameter->value;
  }
  const auto x = at::randn({1, tokens, width}, random, at::TensorOptions().dtype(at::kDouble));
  State state = mixer->initial_state(1, x.options());
  const auto y = mixer->run(x, state, Context::at_positions(at::zeros({1}, at::kLong), tokens));
  const auto memory = discretised(legendre_memory(order, 40));
  auto m = at::zeros({order, 2}, at::kDouble);
  for (int64_t t = 0; t < tokens; ++t) {
    const auto u = at::relu(at::mv(p["in.weight"], x[0][t]) + p["in.bias"]);
    m = at::matmul(memory.a, m) + at::outer(memory.b, u);
    const auto h = at::relu(at::mv(p["hidden.weight"], at::cat({m.flatten(), x[0][t]})) + p["hidden.bias"]);
    const auto expected = at::mv(p["out.weight"], h) + p["out.bias"];
    ASSERT_TRUE(at::allclose(y[0][t], expected, 1e-11, 1e-11)) << "token " << t;
  }
  EXPECT_TRUE(at::allclose(state.at("m")[0], m, 1e-11, 1e-11));
}

// Spikes have no derivative that finite differences see, and in bf16 rounding moves spikes; every other form must
// hold.
TEST(Lmu, SpikingForms) {
  const auto list = Node::parse(
      "[{mixer: lmu, memory: 6, hidden: 12, window: 9, memory_channels: 2, spiking: true}]", "test");
  int64_t passed = 0;
  for (const auto& result : check_mixer(read_check_cases(list)[0], 1)) {
    if (result.form.find("bf16") != std::string::npos ||
        result.form.find("finite differences") != std::string::npos)
      continue;
    if (result.verdict == CheckResult::Verdict::not_applicable) {
      EXPECT_NE(result.form.find("summary"), std::string::npos) << result.form;
      continue;
    }
    EXPECT_EQ(result.verdict, CheckResult::Verdict::pass)
        << result.form << ": " << result.error << " of " << result.bound << ", " << result.detail;
    ++passed;
  }
  EXPECT_GT(passed, 20);
}

TEST(Lmu, SpikingNeuronsFireAtTheStart) {
  const at::NoGradGuard no_grad;
  auto mixer = mixer_of(", memory: 16, spiking: true", 32);
  auto random = at::make_generator<at::CPUGeneratorImpl>(1);
  const auto x = at::randn({4, 100, 32}, random, at::TensorOptions().dtype(at::kDouble));
  State state = mixer->initial_state(4, x.options());
  const auto y = mixer->run(x, state, Context::at_positions(at::zeros({4}, at::kLong), 100));
  // Every neuron has a v; the memory only moves when u spiked, and y only leaves its bias (0) when h did.
  EXPECT_GT(state.at("m").abs().max().item<double>(), 0);
  EXPECT_GT((y.abs().amax(-1) > 0).to(at::kDouble).mean().item<double>(), 0.2);
}

}  // namespace
}  // namespace weft
