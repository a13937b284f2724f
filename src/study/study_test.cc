#include "study/study.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <fstream>

#include "base/error.h"
#include "base/scratch_folder.h"
#include "io/safetensors.h"
#include "study/experiments/supervised.h"
#include "study/verdict.h"

namespace weft {
namespace {

constexpr const char* kRecipe = R"(
title: a test
model: {width: 16, layers: [{mixer: lstm}]}
data: {task: parity, length: 8}
optimizer: {adamw: {lr: 0.01}}
run: {steps: 40, batch: 16, eval_every: 10}
measure: {examples: 32}
arms:
  a: {}
  b: {"run.batch": 8, data: {task: parity, length: 12}}
seeds: [1, 2]
sizes:
  smoke: {run.steps: 6, seeds: [5], arms: [b]}
  h100: {}
claims:
  - {metric: accuracy, arm: a, at_least: 0.9, published: {value: 1.0, source: table 1}}
  - {metric: loss, arm: a, minus: b, at_most: 0.1, threshold: published}
)";

struct RecipeFile {
  explicit RecipeFile(const std::string& text) { std::ofstream(path()) << text; }
  std::string path() const { return folder.file("recipe.yaml"); }
  ScratchFolder folder;
};

std::string error_of(const std::string& text, const std::string& size = "cpu") {
  const RecipeFile file(text);
  try {
    load_study(file.path(), size);
  } catch (const InputError& error) {
    return error.what();
  }
  return "";
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const auto at = text.find(from);
  EXPECT_NE(at, std::string::npos);
  return text.replace(at, from.size(), to);
}

TEST(Study, ArmsSizesAndSetsArePutOnTopOfOneAnother) {
  const RecipeFile file(kRecipe);
  const auto study = load_study(file.path(), "cpu", {"run.eval_every=5"});
  ASSERT_EQ(study.arms.size(), 2u);
  EXPECT_EQ(study.seeds, (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(study.arms[0].configuration.at("run").at("batch").as_int(), 16);
  EXPECT_EQ(study.arms[1].configuration.at("run").at("batch").as_int(), 8);
  EXPECT_EQ(study.arms[1].configuration.at("run").at("steps").as_int(), 40);
  EXPECT_EQ(study.arms[1].configuration.at("run").at("eval_every").as_int(), 5);
  EXPECT_EQ(study.arms[1].configuration.at("data").at("length").as_int(), 12);
  EXPECT_EQ(study.arms[0].experiment.as_string(), "supervised");
  EXPECT_EQ(study.claims[0].published, "1.0, table 1");
  const auto smoke = load_study(file.path(), "smoke");
  ASSERT_EQ(smoke.arms.size(), 1u);
  EXPECT_EQ(smoke.arms[0].name, "b");
  EXPECT_EQ(smoke.arms[0].configuration.at("run").at("steps").as_int(), 6);
  EXPECT_EQ(smoke.seeds, std::vector<int64_t>{5});
}

TEST(Study, MistakesAreNamed) {
  EXPECT_EQ(error_of(kRecipe), "");
  EXPECT_NE(error_of(kRecipe, "large").find("no size 'large'; known: smoke, h100"), std::string::npos);
  EXPECT_NE(
      error_of(replaced(kRecipe, "minus: b", "minus: bb")).find("no arm is called 'bb', did you mean 'b'"),
      std::string::npos);
  EXPECT_NE(error_of(replaced(kRecipe, "at_least: 0.9, ", "")).find("expected at_least or at_most"),
            std::string::npos);
  EXPECT_NE(error_of(replaced(kRecipe, "arms: [b]", "arms: [c]"), "smoke").find("no arm is called 'c'"),
            std::string::npos);
  EXPECT_NE(error_of(replaced(kRecipe, "seeds: [1, 2]", "seeds: []")).find("at least one seed"),
            std::string::npos);
}

RunResult result(const char* arm, int64_t seed, double accuracy, double loss) {
  return {arm, seed, {{"accuracy", accuracy}, {"loss", loss}}};
}

TEST(Verdict, JudgesMeanBestAndWorstOverSeeds) {
  const std::vector<RunResult> results = {result("a", 1, 0.9, 2), result("a", 2, 0.7, 1),
                                          result("b", 1, 0.5, 4)};
  Claim claim;
  claim.arm = "a";
  claim.at_least = 0.8;
  auto verdict = judge(claim, results, "cpu");
  EXPECT_EQ(verdict.kind, Verdict::Kind::holds);
  EXPECT_DOUBLE_EQ(verdict.mean, 0.8);
  EXPECT_DOUBLE_EQ(verdict.low, 0.7);
  EXPECT_EQ(verdict.seeds, 2);
  claim.at_least = 0.81;
  EXPECT_EQ(judge(claim, results, "cpu").kind, Verdict::Kind::refuted);
  claim.judge = "best";
  EXPECT_EQ(judge(claim, results, "cpu").kind, Verdict::Kind::holds);
  claim.judge = "worst";
  claim.at_least = 0.75;
  EXPECT_EQ(judge(claim, results, "cpu").kind, Verdict::Kind::refuted);
  EXPECT_EQ(judge(claim, results, "smoke").kind, Verdict::Kind::not_judged);
  claim.sizes = {"h100"};
  EXPECT_EQ(judge(claim, results, "cpu").kind, Verdict::Kind::not_judged);
  claim.sizes = {};
  claim.minus = "b";  // seed 1 only
  claim.at_least = 0.4;
  claim.judge = "mean";
  verdict = judge(claim, results, "cpu");
  EXPECT_EQ(verdict.kind, Verdict::Kind::not_run) << "arm b has no seed 2";
  claim.minus.clear();
  claim.over = "b";
  claim.metric = "loss";
  EXPECT_DOUBLE_EQ(judge(claim, {results[0], results[2]}, "cpu").mean, 0.5);
  claim.over = "c";
  EXPECT_EQ(judge(claim, results, "cpu").kind, Verdict::Kind::not_run);
}

Outcome run_supervised(const Arm& arm, const ExperimentContext& context) {
  return find_experiment(Node::scalar("supervised")).make(arm.configuration)->run(context);
}

TEST(Supervised, GoesOnAfterAStopWithTheSameBits) {
  const RecipeFile file(kRecipe);
  const auto study = load_study(file.path(), "cpu");
  const ScratchFolder whole, stopped;
  const auto straight = run_supervised(study.arms[0], {.seed = 3, .folder = whole.path(), .base = ""});
  int64_t asked = 0;
  EXPECT_TRUE(
      run_supervised(study.arms[0],
                     {.seed = 3, .folder = stopped.path(), .base = "", .stop = [&] { return ++asked > 17; }})
          .stopped);
  const auto resumed = run_supervised(study.arms[0], {.seed = 3, .folder = stopped.path(), .base = ""});
  EXPECT_FALSE(resumed.stopped);
  for (const auto* name : {"loss", "accuracy", "train_loss", "steps", "parameters"})
    EXPECT_EQ(straight.metrics.at(name), resumed.metrics.at(name)) << name;
  const SafeTensors a(whole.file("checkpoint.safetensors")), b(stopped.file("checkpoint.safetensors"));
  for (const auto& name : a.names()) EXPECT_TRUE(a.view(name).equal(b.view(name))) << name;
}

TEST(Supervised, LearnsParityAndStopsThere) {
  const RecipeFile file(kRecipe);
  auto study = load_study(file.path(), "cpu", {"run.steps=600", "run.stop_at=0.99", "run.eval_every=20"});
  const ScratchFolder folder;
  const auto outcome = run_supervised(study.arms[0], {.seed = 1, .folder = folder.path(), .base = ""});
  EXPECT_GT(outcome.metrics.at("accuracy"), 0.95);
  EXPECT_LT(outcome.metrics.at("steps"), 600);
  EXPECT_LT(outcome.metrics.at("train_loss"), outcome.metrics.at("first_loss"));
}

// The measurements against sums by hand, whole and in chunks.
TEST(Supervised, MeasuresWhatIsAsked) {
  const auto task = make_task(Node::parse("{task: parity, length: 9, shortest: 3}", "test"));
  auto options =
      read_options<ModelOptions>(Node::parse("{width: 8, layers: [{mixer: lstm}]}", "test"), "model");
  Model model(fitted_model(options, task->shape()));
  model.initialize(1);
  const auto examples = task->examples(Split::test, 0, 20, 4);
  const auto logits = model.logits(model.run(examples.inputs)).to(at::kDouble);
  double loss = 0, right = 0, asked = 0, exact = 0;
  for (int64_t row = 0; row < 20; ++row) {
    bool good = true;
    for (int64_t t = 0; t < 9; ++t) {
      const auto target = examples.targets[row][t].item<int64_t>();
      if (target == kNoTarget) continue;
      ++asked;
      loss -= logits[row][t].log_softmax(0)[target].item<double>();
      const bool hit = logits[row][t].argmax().item<int64_t>() == target;
      right += hit;
      good = good && hit;
    }
    exact += good;
  }
  for (const int64_t chunk : {0, 1, 4}) {
    const auto metrics = measure_task(model, *task, {.examples = 20, .batch = 7, .chunk = chunk}, 4);
    EXPECT_NEAR(metrics.at("loss"), loss / asked, 1e-5);
    EXPECT_NEAR(metrics.at("accuracy"), right / asked, 1e-12);
    EXPECT_NEAR(metrics.at("exact"), exact / 20, 1e-12);
  }
}

TEST(Supervised, ModelsOfFeaturesGiveValuesAndClasses) {
  const auto delay = make_task(Node::parse("{task: delay, length: 12, delay: 2}", "test"));
  auto options = read_options<ModelOptions>(
      Node::parse("{width: 8, positions: 12, layers: [{mixer: lstm}]}", "test"), "model");
  Model model(fitted_model(options, delay->shape()));
  model.initialize(1);
  const auto examples = delay->examples(Split::test, 0, 6, 4);
  const auto predicted = model.outputs(examples.inputs);
  EXPECT_EQ(predicted.sizes(), (std::vector<int64_t>{6, 12, 1}));
  const auto error = (predicted - examples.targets).slice(1, 2).to(at::kDouble);
  const auto metrics = measure_task(model, *delay, {.examples = 6, .batch = 4}, 4);
  EXPECT_NEAR(metrics.at("mse"), error.square().mean().item<double>(), 1e-6);
  EXPECT_NEAR(metrics.at("mae"), error.abs().mean().item<double>(), 1e-6);
  EXPECT_THROW(model.outputs(at::zeros({1, 13, 1})), InputError) << "model.positions is 12";
  EXPECT_THROW(model.outputs(at::zeros({1, 5, 2})), InputError);
  EXPECT_THROW(model.logits(at::zeros({1, 8})), InputError);

  const auto lists = make_task(Node::parse("{task: list_ops, shortest: 3, length: 20}", "test"));
  options.positions = 0;
  Model classifier(fitted_model(options, lists->shape()));
  classifier.initialize(1);
  const auto rows = lists->examples(Split::test, 0, 3, 1).inputs;
  EXPECT_EQ(classifier.outputs(rows).sizes(), (std::vector<int64_t>{3, 10}));
  const auto hidden = classifier.run(rows);
  auto last = options;
  last.pool = "last";
  Model by_last(fitted_model(last, lists->shape()));
  by_last.initialize(1);
  EXPECT_FALSE(by_last.outputs(rows).allclose(classifier.outputs(rows)));

  auto flat = options;
  flat.pool = "flatten";
  EXPECT_THROW(Model(fitted_model(flat, lists->shape())), InputError) << "without positions";
  flat.positions = 20;
  Model by_all(fitted_model(flat, lists->shape()));
  by_all.initialize(1);
  EXPECT_EQ(by_all.outputs(rows).sizes(), (std::vector<int64_t>{3, 10}));
  EXPECT_THROW(by_all.outputs(rows.slice(1, 0, 19)), InputError);
}

}  // namespace
}  // namespace weft
