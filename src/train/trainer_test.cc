#include "train/trainer.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <cmath>
#include <filesystem>

#include "base/error.h"
#include "base/scratch_folder.h"
#include "io/model_directory.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

using Sets = std::vector<std::string>;

class TrainerTest : public testing::Test {
 protected:
  TrainerTest() {
    std::string text;
    for (int i = 0; i < 400; ++i)
      text += fmt::format("Thread {} crosses thread {}.\n", i * 31 % 97, i * 17 % 89);
    write_atomically(folder_.file("text.txt"), text);
    write_atomically(folder_.file("recipe.yaml"), std::string_view(R"(
model: {width: 32, layers: [{mixer: attention, heads: 2, ffn: {swiglu: 48}}]}
data: {train: text.txt, valid_fraction: 0.1, length: 24}
optimizer: {adamw: {lr: 0.01}}
schedule: {kind: wsd, warmup: 3}
run: {steps: 12, batch: 3, log_every: 1, checkpoint_every: 4, eval_every: 6, eval_batches: 2, tensorboard: false}
)"));
  }

  std::string run_folder(const std::string& name) const { return folder_.file(name); }
  Recipe recipe(const std::string& name, Sets sets = {}) const {
    sets.push_back("run.dir=" + run_folder(name));
    return load_recipe(folder_.file("recipe.yaml"), sets);
  }
  TrainResult train(const std::string& name, const Sets& sets = {}, bool resume = false,
                    int64_t stop_after = 0) const {
    const Trainer* running = nullptr;
    int64_t stop_at = 0;
    Trainer trainer(recipe(name, sets),
                    {.resume = resume,
                     .stop = [&] { return running && stop_after > 0 && running->state().step >= stop_at; }});
    stop_at = trainer.state().step + stop_after;
    running = &trainer;
    return trainer.run();
  }
  std::string error_of(const std::string& name, const Sets& sets = {}, bool resume = true) const {
    try {
      train(name, sets, resume);
    } catch (const InputError& error) {
      return error.what();
    }
    return "no error";
  }
  // Step, loss and validation losses of every line of the log, to the bit.
  std::vector<std::vector<double>> losses(const std::string& name) const {
    std::vector<std::vector<double>> all;
    for (const auto& line : read_json_log(run_folder(name) + "/log.jsonl"))
      all.push_back({static_cast<double>(line.step), line.value("loss", -1), line.value("valid_loss", -1),
                     line.value("final_valid_loss", -1)});
    return all;
  }
  void expect_equal_weights(const std::string& a, const std::string& b) const {
    const auto first = load_model(run_folder(a)), second = load_model(run_folder(b));
    const auto left = first.model->parameters(), right = second.model->parameters();
    for (size_t i = 0; i < left.size(); ++i)
      EXPECT_TRUE(at::equal(left[i].parameter->value, right[i].parameter->value)) << left[i].name;
  }
  std::vector<int64_t> checkpoint_steps(const std::string& name) const {
    std::vector<int64_t> steps;
    for (const auto& checkpoint : list_checkpoints(run_folder(name))) steps.push_back(checkpoint.step);
    return steps;
  }
  ScratchFolder folder_;
};

TEST_F(TrainerTest, LearnsAndLeavesWhatItPromises) {
  const auto result = train("run", {"run.steps=40"});
  EXPECT_FALSE(result.stopped);
  EXPECT_EQ(result.step, 40);
  const auto log = losses("run");
  ASSERT_EQ(log.size(), 40u);
  EXPECT_NEAR(log.front()[1], std::log(257), 0.5);
  EXPECT_LT(log.back()[1], 3.2);
  ASSERT_TRUE(result.valid.has_value());
  EXPECT_EQ(result.valid->loss(), log.back()[3]);
  const auto held_out = read_text(run_folder("run") + "/valid.txt");
  const auto text = read_text(folder_.file("text.txt"));
  EXPECT_EQ(text.substr(text.size() - held_out.size()), held_out);
  EXPECT_NEAR(static_cast<double>(held_out.size()), 0.1 * static_cast<double>(text.size()), 40);
  // Bytes are the tokens here; the first has nothing before it, and the end of text stands for none.
  EXPECT_EQ(result.valid->bytes, static_cast<int64_t>(held_out.size()) - 1);
  EXPECT_EQ(result.valid->tokens, static_cast<int64_t>(held_out.size()));
  EXPECT_EQ(load_model(run_folder("run")).path, result.model);
  EXPECT_NE(read_text(run_folder("run") + "/curve.svg").find("</svg>"), std::string::npos);
  EXPECT_EQ(Node::load(run_folder("run") + "/recipe.yaml").at("run").at("steps").as_int(), 40);
}

TEST_F(TrainerTest, GoesOnFromAModel) {
  train("first", {"run.steps=12", "tokenizer={bpe: {vocab: 280}}"});
  write_atomically(folder_.file("recipe.yaml"), std::string_view(R"(
from: first
data: {train: text.txt, valid_fraction: 0.1, length: 24}
optimizer: {adamw: {lr: 0.01}}
run: {steps: 4, batch: 3, log_every: 1, tensorboard: false}
)"));
  const auto result = train("second");  // with the first model's tokenizer
  EXPECT_EQ(load_model(result.model).tokenizer->vocab_size(),
            load_model(run_folder("first")).tokenizer->vocab_size());
  EXPECT_NEAR(losses("second").front()[1], losses("first").back()[1], 0.5);
  EXPECT_LT(losses("second").front()[1], losses("first").front()[1] - 1);
  // The resolved recipe, which holds both the model and where it came from, reads back; another model is refused.
  EXPECT_NO_THROW(load_recipe(run_folder("second") + "/recipe.yaml"));
  EXPECT_NE(error_of("third", {"model={width: 16, layers: [{mixer: mamba}]}"}, false).find("another model"),
            std::string::npos);
}

// The weights of a pretrained model are a mapping of its file, which training must not write to.
TEST_F(TrainerTest, GoesOnFromAPretrainedModel) {
  const auto origin = fs::absolute("tests/data/hf_tiny/llama").string();
  write_atomically(folder_.file("recipe.yaml"), "from: " + origin + R"(
tokenizer: characters
data: {train: text.txt, valid_fraction: 0.1, length: 24}
optimizer: {adamw: {lr: 0.01}}
run: {steps: 12, batch: 3, log_every: 1, tensorboard: false}
)");
  const auto before = read_text(origin + "/model.safetensors");
  const auto result = train("pretrained");
  EXPECT_LT(losses("pretrained")[11][1], losses("pretrained")[0][1] - 0.5);
  EXPECT_EQ(read_text(origin + "/model.safetensors"), before);
  EXPECT_FALSE(
      load_model(result.model).config_text.empty());  // so that it can be written as a checkpoint again
}

TEST_F(TrainerTest, StoppedAndResumedEqualsUninterrupted) {
  const std::vector<Sets> variants = {
      {},
      {"optimizer={muon: {lr: 0.02}}", "run.accumulate=2"},
      {"run.dtype=bf16", "tokenizer={bpe: {vocab: 280}}", "schedule.kind=cosine"}};
  for (size_t i = 0; i < variants.size(); ++i) {
    const auto whole = fmt::format("whole{}", i), parts = fmt::format("parts{}", i);
    train(whole, variants[i]);
    EXPECT_TRUE(train(parts, variants[i], false, 3).stopped);
    EXPECT_EQ(losses(parts).size(), 3u);
    EXPECT_TRUE(train(parts, variants[i], true, 6).stopped);
    EXPECT_FALSE(train(parts, variants[i], true).stopped);
    EXPECT_EQ(losses(whole), losses(parts)) << "variant " << i;
    expect_equal_weights(whole, parts);
  }
}

TEST_F(TrainerTest, LinesBeyondTheCheckpointAreDroppedAndWrittenAgain) {
  train("whole");
  train("killed", {}, false, 7);  // checkpoints at 4, 6 (best) and 7
  fs::remove_all(checkpoint_path(run_folder("killed"), 7));
  fs::remove_all(checkpoint_path(run_folder("killed"), 6));
  fs::create_directories(run_folder("killed") + "/checkpoints/step-00000008.tmp-999999");
  train("killed", {}, true);
  EXPECT_EQ(losses("whole"), losses("killed"));
  EXPECT_FALSE(fs::exists(run_folder("killed") + "/checkpoints/step-00000008.tmp-999999"));
}

TEST_F(TrainerTest, KeepsTheLastCheckpointsAndTheBest) {
  train("run", {"run.steps=14", "run.checkpoint_every=2", "run.eval_every=7", "run.keep=2",
                "optimizer.adamw.lr=0.5", "schedule.kind=constant"});
  const auto trainer = Node::load(find_model_folder(run_folder("run") + "/latest") + "/trainer.yaml");
  auto expected = std::set<int64_t>{12, 14, trainer.at("best_step").as_int()};
  EXPECT_EQ(checkpoint_steps("run"), std::vector<int64_t>(expected.begin(), expected.end()));
}

TEST_F(TrainerTest, AccumulationEqualsALargerBatch) {
  train("one", {"run.batch=4", "run.steps=3"});
  train("two", {"run.batch=2", "run.accumulate=2", "run.steps=3"});
  const auto one = losses("one"), two = losses("two");
  for (size_t i = 0; i < 3; ++i) EXPECT_NEAR(one[i][1], two[i][1], 2e-5);
}

TEST_F(TrainerTest, RecomputingLayersChangesNoLoss) {
  train("plain", {"run.steps=4"});
  train("recompute", {"run.steps=4", "run.recompute=true"});
  EXPECT_EQ(losses("plain"), losses("recompute"));
}

TEST_F(TrainerTest, RefusesWhatCannotBeContinued) {
  train("run", {}, false, 5);
  EXPECT_NE(error_of("run", {}, false).find("--resume"), std::string::npos);
  EXPECT_NE(error_of("run", {"run.batch=2"}).find("run.batch: 3 in the checkpoint, 2 now"),
            std::string::npos);
  EXPECT_NE(error_of("run", {"model.width=16"}).find("model.width: 32 in the checkpoint, 16 now"),
            std::string::npos);
  EXPECT_NE(error_of("run", {"run.steps=2"}).find("run.steps: 2"), std::string::npos);
  write_atomically(folder_.file("text.txt"), std::string(9000, 'x') + "\n");
  EXPECT_NE(error_of("run").find("training text:"), std::string::npos);
}

TEST_F(TrainerTest, ADamagedCheckpointIsNamed) {
  train("run", {}, false, 5);
  for (const char* name : {"weights.safetensors", "optimizer.safetensors", "model.yaml"}) {
    const auto path = checkpoint_path(run_folder("run"), 5) + "/" + name;
    const auto whole = read_text(path);
    auto damaged = whole;
    damaged[damaged.size() * 3 / 4] ^= 1;
    write_atomically(path, damaged);
    const auto message = error_of("run");
    EXPECT_NE(message.find(name), std::string::npos) << message;
    EXPECT_NE(message.find("damaged"), std::string::npos) << message;
    write_atomically(path, whole);
  }
  fs::remove(checkpoint_path(run_folder("run"), 5) + "/weights.safetensors");
  EXPECT_NE(error_of("run").find("weights.safetensors"), std::string::npos);
}

TEST_F(TrainerTest, ACheckpointThatIsNotWholeSaysWhatToDo) {
  train("run", {}, false, 5);  // checkpoints at 4 and 5
  const auto checkpoint = checkpoint_path(run_folder("run"), 5);
  const auto advice = "remove the folder " + checkpoint;
  const auto trainer = read_text(checkpoint + "/trainer.yaml");
  for (const auto& garbage : {std::string("\x01\x02: ["), std::string("nothing"), std::string("step: 5\n")}) {
    write_atomically(checkpoint + "/trainer.yaml", garbage);
    EXPECT_NE(error_of("run").find(advice), std::string::npos) << error_of("run");
  }
  fs::remove(checkpoint + "/trainer.yaml");
  EXPECT_NE(error_of("run").find(advice), std::string::npos) << error_of("run");
  write_atomically(checkpoint + "/trainer.yaml", trainer);
  fs::remove(checkpoint + "/optimizer.safetensors");
  EXPECT_NE(error_of("run").find(advice), std::string::npos) << error_of("run");
  fs::remove_all(checkpoint);
  EXPECT_FALSE(train("run", {}, true).stopped);
}

TEST_F(TrainerTest, AFinishedRunWithoutCheckpointsIsNotOverwritten) {
  train("run");
  fs::remove_all(run_folder("run") + "/checkpoints");
  const auto log = read_text(run_folder("run") + "/log.jsonl");
  EXPECT_NE(error_of("run", {}, false).find("model/"), std::string::npos);
  EXPECT_NE(error_of("run", {}, true).find("model/"), std::string::npos);
  EXPECT_EQ(read_text(run_folder("run") + "/log.jsonl"), log);
  fs::remove_all(run_folder("run") + "/model");  // as after a kill before the first checkpoint
  EXPECT_NE(error_of("run", {}, false).find("log.jsonl"), std::string::npos);
  EXPECT_FALSE(train("run", {}, true).stopped);
  train("whole");
  EXPECT_EQ(losses("whole"), losses("run"));
}

TEST_F(TrainerTest, AnErrorLeavesNoFolder) {
  write_atomically(folder_.file("empty.txt"), std::string_view());
  write_atomically(folder_.file("broken.json"), std::string_view("{"));
  for (const auto& set : {std::string("data.train=absent.txt"), "data.train=" + folder_.path(),
                          "data.train=" + folder_.file("empty.txt"), std::string("data.length=100000"),
                          std::string("model.layers=[{mixer: atention}]"), std::string("model.vocab=3"),
                          "tokenizer=" + folder_.file("broken.json"),
                          std::string("tokenizer={bpe: {vocab: 300, pattern: '('}}")}) {
    EXPECT_NE(error_of("made/run", {set}, false), "no error") << set;
    EXPECT_FALSE(fs::exists(run_folder("made"))) << set;
  }
  fs::create_directories(run_folder("kept"));
  EXPECT_NE(error_of("kept", {"data.length=100000"}, false), "no error");
  EXPECT_TRUE(fs::exists(run_folder("kept")));
}

TEST_F(TrainerTest, StopsWhileDataIsPreparedAndInTheLastValidation) {
  train("whole");
  const auto run = [&](const std::function<bool(const Trainer*)>& stop) {
    const Trainer* running = nullptr;
    Trainer trainer(recipe("parts"), {.resume = true, .stop = [&] { return stop(running); }});
    running = &trainer;
    return trainer.run();
  };
  const auto unprepared = run([](const Trainer* trainer) { return !trainer; });
  EXPECT_TRUE(unprepared.stopped);
  EXPECT_EQ(unprepared.step, 0);
  const auto in_validation = [](const Trainer* trainer) { return trainer && trainer->state().step == 12; };
  for (int i = 0; i < 2; ++i) {
    const auto result = run(in_validation);
    EXPECT_TRUE(result.stopped);
    EXPECT_EQ(result.step, 12);
    EXPECT_EQ(losses("parts").size(), 12u);
    EXPECT_FALSE(fs::exists(run_folder("parts") + "/model"));
  }
  const auto result = run([](const Trainer*) { return false; });
  EXPECT_FALSE(result.stopped);
  ASSERT_TRUE(result.valid.has_value());
  EXPECT_EQ(result.valid->loss(), losses("whole").back()[3]);
  EXPECT_EQ(losses("parts").back()[3], losses("whole").back()[3]);
  expect_equal_weights("whole", "parts");
}

TEST_F(TrainerTest, AChangeAnywhereInTheTextIsNoticed) {
  const std::string text(2'000'000, 'x');
  write_atomically(folder_.file("text.txt"), text);
  train("run", {}, false, 1);
  auto changed = text;
  changed[1'000'003] = 'y';
  write_atomically(folder_.file("text.txt"), changed);
  EXPECT_NE(error_of("run").find("training text:"), std::string::npos);
}

TEST_F(TrainerTest, AWarmUpBeyondTheLastStepIsSaid) {
  std::string shown;
  LineOutput out([&](std::string_view text) { shown += text; }, LineOutput::Style::plain);
  Trainer(recipe("run", {"run.steps=1", "schedule.warmup=2"}), {.out = &out}).run();
  EXPECT_NE(shown.find("warning: schedule.warmup is 2 but run.steps is 1"), std::string::npos) << shown;
}

// Files cannot grow beyond `bytes` while this lives, as on a full disk.
class FileLimit {
 public:
  explicit FileLimit(rlim_t bytes) {
    old_handler_ = ::signal(SIGXFSZ, SIG_IGN);
    ::getrlimit(RLIMIT_FSIZE, &old_);
    const rlimit limit{bytes, old_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileLimit() {
    ::setrlimit(RLIMIT_FSIZE, &old_);
    ::signal(SIGXFSZ, old_handler_);
  }

 private:
  rlimit old_{};
  sighandler_t old_handler_;
};

TEST_F(TrainerTest, AFullDiskLeavesTheLastCheckpointWhole) {
  train("whole");
  train("full", {}, false, 4);
  {
    const FileLimit limit(30000);  // less than the embedding
    const auto message = error_of("full");
    EXPECT_NE(message.find("checkpoints/"), std::string::npos) << message;
    EXPECT_NE(message.find("File too large"), std::string::npos) << message;
  }
  EXPECT_EQ(checkpoint_steps("full"), std::vector<int64_t>{4});
  EXPECT_EQ(
      std::distance(fs::directory_iterator(run_folder("full") + "/checkpoints"), fs::directory_iterator()),
      1);
  train("full", {}, true);
  EXPECT_EQ(losses("whole"), losses("full"));
}

TEST_F(TrainerTest, AnAbsentFileSaysWhatToInstall) {
  const auto message = error_of("run", {"data.train=absent.txt", "data.hint=apt-get install some-text"});
  EXPECT_NE(message.find("absent.txt"), std::string::npos) << message;
  EXPECT_NE(message.find("apt-get install some-text"), std::string::npos) << message;
}

TEST_F(TrainerTest, OneRunAFolder) {
  Trainer first(recipe("run"), {});
  EXPECT_NE(error_of("run").find("another process"), std::string::npos);
}

TEST_F(TrainerTest, DivergenceIsAnErrorWithAdvice) {
  const auto message = error_of("run", {"optimizer.adamw.lr=1e30", "run.clip=0", "schedule.warmup=0"}, false);
  EXPECT_NE(message.find("diverged"), std::string::npos) << message;
  EXPECT_NE(message.find("optimizer.adamw.lr (now 1e+30)"), std::string::npos) << message;
}

TEST_F(TrainerTest, TokenFilesAreTakenAsTheyAre) {
  train("text", {}, false, 3);
  const auto data = run_folder("text") + "/data/";
  const auto tokens = Sets{"data.train=" + data + "train.tokens", "data.valid=" + data + "valid.tokens",
                           "data.valid_fraction=0"};
  train("tokens", tokens, false, 3);
  EXPECT_EQ(losses("text"), losses("tokens"));
}

}  // namespace
}  // namespace weft
