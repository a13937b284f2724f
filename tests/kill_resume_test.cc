// Training that is killed at random moments, again and again, ends with the losses of a run that never was.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <thread>

#include "base/files.h"
#include "base/scratch_folder.h"
#include "io/model_directory.h"
#include "train/log/json_log.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr int kKills = 50;

// Small enough that a step takes milliseconds, with everything that has a state of its own: accumulation, a
// learned vocabulary, validation, Muon's momentum.
constexpr const char* kRecipe = R"(
model:
  width: 32
  layers: [{mixer: attention, heads: 2, ffn: {swiglu: 48}}, {mixer: lstm, heads: 2, ffn: {swiglu: 48}}]
tokenizer: {bpe: {vocab: 300}}
data: {train: text.txt, valid_fraction: 0.1, length: 24}
optimizer: {muon: {lr: 0.01}}
schedule: {kind: wsd, warmup: 5}
run: {steps: 300, batch: 2, accumulate: 2, seed: 3, log_every: 1, checkpoint_every: 7, eval_every: 20, eval_batches: 2}
)";

std::string program() {
  const char* given = std::getenv("WEFT_PROGRAM_PATH");
  return given ? given : WEFT_PROGRAM;
}

class Child {
 public:
  Child(const std::string& recipe, const std::string& run, const std::string& output) {
    pid_ = ::fork();
    if (pid_ == 0) {
      const int file = ::open(output.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
      ::dup2(file, 1);
      ::dup2(file, 2);
      // One thread: a busy machine makes threads wait for each other, and the model is far too small for two.
      ::setenv("OMP_NUM_THREADS", "1", 1);
      const std::string set = "run.dir=" + run, path = program();
      ::execl(path.c_str(), path.c_str(), "train", recipe.c_str(), "--resume", "--set", set.c_str(), nullptr);
      ::_exit(127);
    }
  }
  // Waits for the end, at most until then. True when it ended by itself, with `code`.
  bool ended_before(Clock::time_point when, int& code) {
    for (;; std::this_thread::sleep_for(std::chrono::milliseconds(1))) {
      int status = 0;
      if (::waitpid(pid_, &status, WNOHANG) == pid_) {
        code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        return true;
      }
      if (Clock::now() >= when) return false;
    }
  }
  void kill() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }

 private:
  pid_t pid_ = -1;
};

class KillResume : public testing::Test {
 protected:
  KillResume() {
    std::string text;
    for (int i = 0; i < 600; ++i)
      text += "Thread " + std::to_string(i * 31 % 97) + " crosses " + std::to_string(i * 17 % 89) + ".\n";
    write_atomically(folder_.file("text.txt"), text);
    write_atomically(recipe_, std::string_view(kRecipe));
  }
  std::vector<std::pair<int64_t, std::vector<double>>> losses(const std::string& run) const {
    std::vector<std::pair<int64_t, std::vector<double>>> all;
    const auto path = run + "/log.jsonl";
    if (!fs::exists(path)) return all;
    for (const auto& line : read_json_log(path))
      all.push_back(
          {line.step,
           {line.value("loss", -1), line.value("valid_loss", -1), line.value("final_valid_loss", -1)}});
    return all;
  }
  void run_to_end(const std::string& run) {
    int code = -1;
    Child child(recipe_, run, output_);
    const bool ended = child.ended_before(Clock::now() + std::chrono::minutes(5), code);
    if (!ended) child.kill();
    ASSERT_TRUE(ended && code == 0) << "exit code " << code << "\n" << read_text(output_);
  }
  // Every line of the log so far is the reference's line.
  void expect_prefix(const std::string& run) {
    const auto log = losses(run);
    ASSERT_LE(log.size(), reference_.size());
    for (size_t i = 0; i < log.size(); ++i)
      ASSERT_EQ(log[i], reference_[i]) << "line " << i + 1 << " of " << run;
  }
  void expect_equal_weights(const std::string& run) {
    EXPECT_EQ(read_text(run + "/model/weights.safetensors"),
              read_text(folder_.file("whole") + "/model/weights.safetensors"));
  }

  ScratchFolder folder_;
  std::string recipe_ = folder_.file("recipe.yaml"), output_ = folder_.file("output.txt");
  std::vector<std::pair<int64_t, std::vector<double>>> reference_;
};

TEST_F(KillResume, FiftyKillsAtRandomMomentsChangeNoBit) {
  const auto begin = Clock::now();
  ASSERT_NO_FATAL_FAILURE(run_to_end(folder_.file("whole")));
  const double whole_s = std::chrono::duration<double>(Clock::now() - begin).count();
  reference_ = losses(folder_.file("whole"));
  ASSERT_EQ(reference_.size(), 300u);

  std::mt19937_64 random(std::random_device{}());
  const auto seed = random();
  SCOPED_TRACE("seed of the moments: " + std::to_string(seed));
  random.seed(seed);
  int runs = 0, kills = 0;
  for (; kills < kKills; ++runs) {
    const auto run = folder_.file("killed" + std::to_string(runs));
    for (bool done = false; !done && kills < kKills;) {
      // From before the program has loaded to about half of the whole run.
      const auto wait =
          std::chrono::duration<double>(std::uniform_real_distribution<>(0, whole_s / 2)(random));
      int code = -1;
      Child child(recipe_, run, output_);
      done = child.ended_before(Clock::now() + std::chrono::duration_cast<Clock::duration>(wait), code);
      if (done) {
        ASSERT_EQ(code, 0) << read_text(output_);
      } else {
        child.kill();
        ++kills;
      }
      ASSERT_NO_FATAL_FAILURE(expect_prefix(run));
    }
    ASSERT_NO_FATAL_FAILURE(run_to_end(run));
    EXPECT_EQ(losses(run), reference_);
    expect_equal_weights(run);
    for (const auto& entry : fs::recursive_directory_iterator(run))
      EXPECT_EQ(entry.path().filename().string().find(".tmp-"), std::string::npos) << entry.path();
  }
  RecordProperty("runs", runs);
  RecordProperty("kills", kills);
}

}  // namespace
}  // namespace weft
