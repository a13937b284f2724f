// The experiments that train no sequence model.
#include <gtest/gtest.h>

#include <fstream>

#include "base/error.h"
#include "base/scratch_folder.h"
#include "study/experiment.h"

namespace weft {
namespace {

Outcome run(const std::string& name, const std::string& configuration, const ExperimentContext& context) {
  return find_experiment(Node::scalar(name)).make(Node::parse(configuration, "test"))->run(context);
}

std::map<std::string, double> measured(const std::string& name, const std::string& configuration,
                                       uint64_t seed = 1) {
  const ScratchFolder folder;
  return run(name, configuration, {.seed = seed, .folder = folder.path(), .base = ""}).metrics;
}

// Errors of another draw of the same distribution, in NumPy: 7.8e-1, 2.1e-2, 3.0e-5, 6.8e-11, 4e-16 and, for 128
// channels of the LSTM, 8.7e-1, 9.0e-2, 1.0e-4, 6.7e-10.
TEST(NewtonError, FallsQuadratically) {
  const auto gru = measured("newton_error", "{cell: para_gru}");
  const auto lstm = measured("newton_error", "{cell: para_lstm, channels: 128, iterations: 3}");
  const auto expect_order = [](double found, double expected) {
    EXPECT_GT(found, expected / 20);
    EXPECT_LT(found, expected * 20);
  };
  expect_order(gru.at("error_0"), 7.8e-1);
  expect_order(gru.at("error_1"), 2.1e-2);
  expect_order(gru.at("error_2"), 3.0e-5);
  expect_order(gru.at("error_3"), 6.8e-11);
  EXPECT_LT(gru.at("error_4"), 2e-15);
  expect_order(lstm.at("error_0"), 8.7e-1);
  expect_order(lstm.at("error_1"), 9.0e-2);
  expect_order(lstm.at("error_2"), 1.0e-4);
  expect_order(lstm.at("error_3"), 6.7e-10);
  EXPECT_EQ(lstm.count("error_4"), 0u);
  for (const auto& errors : {gru, lstm})
    for (int k = 1; k < 3; ++k) {
      const double before = errors.at(fmt::format("error_{}", k));
      EXPECT_LT(errors.at(fmt::format("error_{}", k + 1)), before * before);
    }
}

TEST(NewtonError, SinglePrecisionEndsAtItsRounding) {
  const auto errors = measured("newton_error", "{cell: para_gru, dtype: fp32, length: 200, channels: 64}");
  EXPECT_LT(errors.at("error_3"), 1e-6);
  EXPECT_GT(errors.at("error_3"), 1e-9);
}

// The larger the state's weights, the larger the derivatives and the slower the method: 1.13 and 2.1e-4 for u = 1, 1.72
// and 0.7 for u = 2.
TEST(NewtonError, LargeWeightsConvergeSlowly) {
  const auto moderate = measured("newton_error", "{cell: para_gru, uniform: 1, channels: 128}");
  const auto large = measured("newton_error", "{cell: para_gru, uniform: 2, channels: 128}");
  EXPECT_NEAR(moderate.at("max_jacobian"), 1.13, 0.1);
  EXPECT_NEAR(large.at("max_jacobian"), 1.72, 0.2);
  EXPECT_LT(moderate.at("error_3"), 1e-2);
  EXPECT_GT(moderate.at("error_3"), 1e-6);
  EXPECT_GT(large.at("error_3"), 1e-2);
}

TEST(NewtonError, MistakesAreNamed) {
  EXPECT_THROW(measured("newton_error", "{cell: lstm}"), InputError);
  EXPECT_THROW(measured("newton_error", "{channels: 3}"), InputError);
}

// Two classes of four pixels, in turns: dark at the top or at the bottom.
struct Squares {
  Squares() {
    std::ofstream file(folder.file("squares.csv"));
    for (int i = 0; i < 200; ++i) {
      const int light = 6 + i % 5, dark = i % 3;
      if (i % 2)
        file << light << ',' << light - 1 << ',' << dark << ",0,1\n";
      else
        file << dark << ",0," << light << ',' << light - 1 << ",0\n";
    }
  }
  std::string recipe(const std::string& network, const std::string& optimizer, const std::string& run) const {
    return fmt::format("{{network: {}, data: {{task: digits, images: {}}}, optimizer: {}, run: {}}}", network,
                       folder.file("squares.csv"), optimizer, run);
  }
  ScratchFolder folder;
};

constexpr const char* kRun = "{steps: 60, batch: 20, starts: 3}";

TEST(DeepMlp, ZerosStayAtChance) {
  const Squares squares;
  const auto metrics =
      measured("deep_mlp", squares.recipe("{layers: 3, width: 8, init: zero}", "{sgd: {lr: 0.1}}", kRun));
  EXPECT_EQ(metrics.at("accuracy"), 0.5);
  EXPECT_EQ(metrics.at("best_accuracy"), 0.5);
  EXPECT_EQ(metrics.at("accuracy_spread"), 0);
  EXPECT_EQ(metrics.at("solved"), 0);
}

TEST(DeepMlp, NoiseLeadsAwayFromZeros) {
  const Squares squares;
  const auto metrics =
      measured("deep_mlp", squares.recipe("{layers: 1, width: 8, init: zero}",
                                          "{sgd: {lr: 0.1, gradient_noise: {eta: 0.3}}}", kRun));
  EXPECT_GT(metrics.at("best_accuracy"), 0.9);
}

TEST(DeepMlp, ScaledWeightsLearn) {
  const Squares squares;
  const auto metrics =
      measured("deep_mlp", squares.recipe("{layers: 4, width: 16, init: he}", "{sgd: {lr: 0.1}}", kRun));
  EXPECT_EQ(metrics.at("accuracy"), 1);
  EXPECT_EQ(metrics.at("solved"), 1);
  EXPECT_EQ(metrics.at("diverged"), 0);
}

TEST(DeepMlp, DivergenceIsCountedNotThrown) {
  const Squares squares;
  const auto metrics =
      measured("deep_mlp", squares.recipe("{layers: 6, width: 16, init: normal, deviation: 20}",
                                          "{sgd: {lr: 1000}}", "{steps: 60, batch: 20, starts: 2}"));
  EXPECT_EQ(metrics.at("diverged"), 1);
}

TEST(DeepMlp, GoesOnAfterTheLastWholeStart) {
  const Squares squares;
  const auto recipe =
      squares.recipe("{layers: 2, width: 8, init: normal, deviation: 0.3}",
                     "{sgd: {lr: 0.05, gradient_noise: {eta: 0.1}}}", "{steps: 12, batch: 20, starts: 4}");
  const ScratchFolder whole, stopped;
  const auto straight = run("deep_mlp", recipe, {.seed = 3, .folder = whole.path(), .base = ""});
  int asked = 0;
  EXPECT_TRUE(run("deep_mlp", recipe,
                  {.seed = 3, .folder = stopped.path(), .base = "", .stop = [&] { return ++asked > 30; }})
                  .stopped);
  asked = 0;
  const auto resumed = run("deep_mlp", recipe, {.seed = 3, .folder = stopped.path(), .base = "", .stop = [&] {
                                                  ++asked;
                                                  return false;
                                                }});
  EXPECT_EQ(asked, 24) << "two of four starts were left";
  for (const auto* name : {"accuracy", "best_accuracy", "accuracy_spread"})
    EXPECT_EQ(straight.metrics.at(name), resumed.metrics.at(name)) << name;
  EXPECT_GT(straight.metrics.at("accuracy_spread"), 0) << "starts differ";
}

}  // namespace
}  // namespace weft
