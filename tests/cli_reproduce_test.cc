// `weft reproduce`, `weft tasks` and `weft matrix` from outside: stopped and gone on with, exit codes, bad input.
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <filesystem>

#include "trained_model.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

constexpr const char* kRecipe = R"(
model: {width: 8, layers: [{mixer: lstm}]}
data: {task: parity, length: 4}
optimizer: {adamw: {lr: 0.01}}
run: {steps: 3, batch: 4, eval_every: 1000, checkpoint_every: 100}
measure: {examples: 16}
arms:
  quick: {}
  slow: {run.steps: 4000}
claims:
  - {name: certain, arm: quick, at_least: 0.0}
  - {name: impossible, arm: slow, metric: loss, at_most: -1}
)";

std::vector<std::string> reproduce(const std::string& recipe, const std::string& folder) {
  return {"reproduce", recipe, "--folder", folder, "--jobs", "1", "--device", "cpu"};
}

TEST(CliReproduce, GoesOnAfterAnInterruptAndReportsARefutedClaim) {
  const ScratchFolder folder;
  const auto recipe = folder.file("study.yaml"), runs = folder.file("runs");
  spill(recipe, kRecipe);
  Program first(reproduce(recipe, runs));
  const auto stopped = first.run_and_signal("quick seed 1: done", SIGINT);
  EXPECT_EQ(stopped.code, 130) << stopped.err;
  EXPECT_NE(stopped.err.find("the same command goes on"), std::string::npos) << stopped.err;
  EXPECT_FALSE(fs::exists(runs + "/results.json"));
  const auto quick = runs + "/quick-1/result.json";
  const auto made = fs::last_write_time(quick);
  const auto whole = weft_program(reproduce(recipe, runs));
  EXPECT_EQ(whole.code, 3) << whole.err;
  EXPECT_EQ(fs::last_write_time(quick), made) << "what is finished is not run again";
  EXPECT_NE(whole.out.find("certain"), std::string::npos);
  EXPECT_NE(whole.out.find("refuted"), std::string::npos) << whole.out;
  const auto results = slurp(runs + "/results.json");
  EXPECT_NE(results.find("\"steps\": 4000.0"), std::string::npos) << results;
  EXPECT_NE(results.find("\"verdict\": \"holds\""), std::string::npos);
  EXPECT_EQ(slurp(runs + "/results.svg").rfind("<svg", 0), 0u);
}

TEST(CliReproduce, NamesWhatFailed) {
  const ScratchFolder folder;
  const auto recipe = folder.file("study.yaml");
  spill(recipe, kRecipe);
  auto arguments = reproduce(recipe, folder.file("runs"));
  const auto with = [&](std::vector<std::string> more) {
    auto all = arguments;
    all.insert(all.end(), more.begin(), more.end());
    return weft_program(all);
  };
  EXPECT_NE(with({"--size", "large"}).err.find("no size 'large'"), std::string::npos);
  EXPECT_NE(weft_program({"reproduce", recipe, "--jobs", "-1"}).err.find("--jobs -1"), std::string::npos);
  EXPECT_NE(with({"--set", "run.step=3"}).err.find("did you mean 'steps'"), std::string::npos);
  EXPECT_NE(with({"--run", "slow"}).err.find("expected ARM:SEED"), std::string::npos);
  const auto failed = with({"--set", "optimizer.adamw.lr=1e30", "--set", "run.steps=50"});
  EXPECT_EQ(failed.code, 1);
  EXPECT_NE(failed.err.find("quick seed 1:"), std::string::npos) << failed.err;
  spill(folder.file("file"), "x");
  EXPECT_NE(weft_program(reproduce(recipe, folder.file("file"))).err.find("is not a folder"),
            std::string::npos);
}

TEST(CliReproduce, TasksAndMatrix) {
  EXPECT_NE(weft_program({"tasks"}).out.find("mqar"), std::string::npos);
  EXPECT_NE(weft_program({"tasks", "mqa"}).err.find("did you mean 'mqar'"), std::string::npos);
  const ScratchFolder folder;
  const auto model = trained_model().run + "/model", out = folder.file("m.csv");
  const auto made = weft_program({"matrix", model, "--layer", "0", "--tokens", "5", "--out", out});
  ASSERT_EQ(made.code, 0) << made.err;
  const auto text = slurp(out);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 5);
  EXPECT_EQ(std::count(text.begin(), text.end(), ','), 20);
  EXPECT_NE(weft_program({"matrix", model, "--layer", "99"}).err.find("layer 99"), std::string::npos);
  EXPECT_NE(weft_program({"matrix", model, "--out", "m.txt"}).err.find("ending in .csv or .svg"),
            std::string::npos);
}

}  // namespace
}  // namespace weft
