// `weft train` from outside: what it leaves, how it stops and goes on, and that nothing is left half written.
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>

#include "trained_model.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> temporary_files(const std::string& folder) {
  std::vector<std::string> found;
  for (const auto& name : files_below(folder))
    if (name.find(".tmp-") != std::string::npos) found.push_back(name);
  return found;
}

// Lines of the log without what depends on the clock: step and loss only.
std::vector<std::string> losses(const std::string& run) {
  std::vector<std::string> lines;
  const auto log = slurp(run + "/log.jsonl");
  for (size_t at = log.find("\"step\""); at != std::string::npos; at = log.find("\"step\"", at + 1)) {
    const auto step = log.substr(at, log.find_first_of(",}", at) - at);
    const auto end = log.find('\n', at);
    const auto loss =
        log.find("\"loss\"", log.rfind('\n', at) == std::string::npos ? 0 : log.rfind('\n', at));
    if (loss < end) lines.push_back(step + " " + log.substr(loss, log.find_first_of(",}", loss) - loss));
  }
  return lines;
}

TEST(CliTrain, LeavesAModelALogAndACurve) {
  const auto& model = trained_model();
  ASSERT_EQ(model.result.code, 0) << model.result.err;
  EXPECT_NE(model.result.out.find("run/model"), std::string::npos) << model.result.out;
  for (const char* file : {"/model/model.yaml", "/model/weights.safetensors", "/model/tokenizer.json",
                           "/log.jsonl", "/recipe.yaml", "/curve.svg"})
    EXPECT_TRUE(fs::exists(model.run + file)) << file;
  EXPECT_EQ(losses(model.run).size(), 30u);
  EXPECT_TRUE(temporary_files(model.run).empty());
}

TEST(CliTrain, QuietMeansQuiet) {
  const auto& model = trained_model();
  const ScratchFolder folder;
  const auto result = weft_program(
      {"train", model.recipe, "--quiet", "--set", "run.dir=" + folder.file("run"), "--set", "run.steps=2"});
  EXPECT_EQ(result.code, 0);
  EXPECT_EQ(result.err, "");
}

TEST(CliTrain, RefusesToOverwriteARun) {
  const auto& model = trained_model();
  const auto result = weft_program({"train", model.recipe, "--set", "run.dir=" + model.run});
  EXPECT_EQ(result.code, 1);
  EXPECT_NE(result.err.find("--resume"), std::string::npos) << result.err;
}

// Stopped by a signal after some steps: a checkpoint, no rubbish, the right exit code; resumed, the same
// losses as a run that was never stopped.
void expect_clean_stop(int signal) {
  const auto& model = trained_model();
  const ScratchFolder folder;
  const auto run = folder.file("run");
  const std::vector<std::string> arguments = {"train",          model.recipe, "--set",
                                              "run.dir=" + run, "--set",      "run.steps=100000"};
  // Waits for a logged step; the log's own lines go to standard error.
  const auto stopped = Program(arguments).run_and_signal("loss", signal);
  EXPECT_EQ(stopped.code, 128 + signal) << stopped.err;
  EXPECT_TRUE(temporary_files(run).empty());
  EXPECT_TRUE(fs::exists(run + "/checkpoints"));
  const auto before = losses(run).size();
  ASSERT_GT(before, 0u);
  const auto target = std::to_string(before + 3);
  const auto resumed = weft_program(
      {"train", model.recipe, "--resume", "--set", "run.dir=" + run, "--set", "run.steps=" + target});
  EXPECT_EQ(resumed.code, 0) << resumed.err;
  // The schedule depends on run.steps, so only its length is compared here; bit equality is the trainer's own
  // test.
  EXPECT_EQ(losses(run).size(), before + 3);
}

TEST(CliTrain, StopsCleanlyOnInterrupt) { expect_clean_stop(SIGINT); }
TEST(CliTrain, StopsCleanlyOnTerminate) { expect_clean_stop(SIGTERM); }

TEST(CliTrain, GenerationStopsOnSignals) {
  const auto& model = trained_model();
  for (const int signal : {SIGINT, SIGTERM}) {
    const auto stopped =
        Program({"generate", model.run, "The shuttle ", "-n", "100000000", "--ignore-end", "-t", "0"})
            .run_and_signal("e", signal);
    EXPECT_EQ(stopped.code, 128 + signal);
    EXPECT_NE(stopped.err.find("cancelled"), std::string::npos) << stopped.err;
  }
}

}  // namespace
}  // namespace weft
