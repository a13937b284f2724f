// What a user can get wrong: each is one clear message on standard error, exit code 1 (2 for bad usage), and
// nothing half written.
#include <gtest/gtest.h>

#include <filesystem>

#include "trained_model.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

// One message, with all these parts, and no results.
void expect_error(const ProgramResult& result, const std::vector<std::string>& parts, int code = 1) {
  EXPECT_EQ(result.code, code) << result.out << result.err;
  EXPECT_NE(result.err.find("weft: error: "), std::string::npos) << result.err;
  EXPECT_EQ(result.err.find("weft: error: "), result.err.rfind("weft: error: ")) << "more than one message:\n"
                                                                                 << result.err;
  EXPECT_EQ(result.err.find("Exception raised from"), std::string::npos) << "a backtrace:\n" << result.err;
  for (const auto& part : parts)
    EXPECT_NE(result.err.find(part), std::string::npos) << "expected '" << part << "' in:\n" << result.err;
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const auto at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

// A folder with text.txt and recipe.yaml, to be spoilt.
class BadRecipe : public ::testing::Test {
 protected:
  BadRecipe() { spill(folder_.file("text.txt"), slurp(trained_model().text)); }
  ProgramResult train_with(const std::string& from, const std::string& to) {
    spill(folder_.file("recipe.yaml"), replaced(tiny_recipe(2), from, to));
    auto result =
        weft_program({"train", folder_.file("recipe.yaml"), "--set", "run.dir=" + folder_.file("run")});
    EXPECT_FALSE(fs::exists(folder_.file("run/model")));
    return result;
  }
  ScratchFolder folder_;
};

TEST_F(BadRecipe, MisspeltFieldOfTheModel) {
  expect_error(train_with("width: 32", "widht: 32"), {"recipe.yaml:3", "widht", "did you mean 'width'?"});
}
TEST_F(BadRecipe, MisspeltFieldOfAMixer) {
  expect_error(train_with("head_dim: 16", "head_dims: 16"),
               {"recipe.yaml:5", "layers[0].head_dims", "did you mean 'head_dim'?"});
}
TEST_F(BadRecipe, MisspeltSection) {
  expect_error(train_with("optimizer:", "optimiser:"), {"optimiser", "did you mean 'optimizer'?"});
}
TEST_F(BadRecipe, MisspeltMixer) {
  expect_error(train_with("mixer: attention", "mixer: atention"),
               {"recipe.yaml:6", "atention", "did you mean 'attention'?"});
}
TEST_F(BadRecipe, MisspeltOptimizer) {
  expect_error(train_with("adamw", "adam_w"), {"adam_w", "did you mean 'adamw'?"});
}
TEST_F(BadRecipe, WrongType) {
  expect_error(train_with("width: 32", "width: wide"), {"recipe.yaml:3", "width", "wide"});
}
TEST_F(BadRecipe, WrongTypeOfAList) { expect_error(train_with("{steps: 2", "{steps: [2]"), {"steps"}); }
TEST_F(BadRecipe, OutsideItsLimits) {
  expect_error(train_with("heads: 2", "heads: 0"), {"recipe.yaml:5", "heads", "at least 1"});
}
TEST_F(BadRecipe, HeadsThatDoNotDivideTheWidth) {
  expect_error(train_with("mixer: attention, heads: 2, head_dim: 16", "mixer: attention, heads: 5"),
               {"recipe.yaml:6", "heads", "32"});
}
TEST_F(BadRecipe, ImportThatNothingExports) {
  expect_error(train_with("mixer: attention, heads: 2, head_dim: 16",
                          "mixer: cross_attention, heads: 2, import: {kv: cache}"),
               {"recipe.yaml:6", "cache"});
}
TEST_F(BadRecipe, BrokenYaml) { expect_error(train_with("width: 32", "width: [32"), {"recipe.yaml:"}); }
TEST_F(BadRecipe, AbsentData) { expect_error(train_with("text.txt", "absent.txt"), {"absent.txt"}); }
TEST_F(BadRecipe, EmptyData) {
  spill(folder_.file("empty.txt"), "");
  expect_error(train_with("text.txt", "empty.txt"), {"empty"});
}
TEST_F(BadRecipe, BadSet) {
  spill(folder_.file("recipe.yaml"), tiny_recipe(2));
  expect_error(weft_program({"train", folder_.file("recipe.yaml"), "--set", "run.stepz=2"}),
               {"stepz", "did you mean 'steps'?"});
  expect_error(weft_program({"train", folder_.file("recipe.yaml"), "--set", "nonsense"}), {"nonsense"});
}
TEST_F(BadRecipe, AbsentRecipe) {
  expect_error(weft_program({"train", "/no/such/recipe.yaml"}), {"/no/such/recipe.yaml"});
}

TEST_F(BadRecipe, FolderThatCannotBeWritten) {
  spill(folder_.file("recipe.yaml"), tiny_recipe(2));
  const auto inside_a_file = folder_.file("text.txt") + "/run";
  expect_error(weft_program({"train", folder_.file("recipe.yaml"), "--set", "run.dir=" + inside_a_file}),
               {inside_a_file});
  expect_error(weft_program({"train", folder_.file("recipe.yaml"), "--set", "run.dir=/proc/weft"}),
               {"/proc/weft"});
}

TEST_F(BadRecipe, FullDisk) {
  spill(folder_.file("recipe.yaml"), tiny_recipe(2));
  const auto run = folder_.file("run");
  // Enough for the tokens and the log, not for weights and optimizer state.
  const auto result =
      Program({"train", folder_.file("recipe.yaml"), "--set", "run.dir=" + run}).file_limit(100000).run();
  expect_error(result, {run, "File too large"});
  for (const auto& name : files_below(run)) {
    EXPECT_EQ(name.find("step-"), std::string::npos) << name;
    EXPECT_EQ(name.find(".tmp-"), std::string::npos) << name;
  }
  EXPECT_FALSE(fs::exists(run + "/model"));
}

// A copy of the trained model, to be spoilt.
class BadModel : public ::testing::Test {
 protected:
  BadModel() { fs::copy(trained_model().run + "/model", path(), fs::copy_options::recursive); }
  std::string path(const std::string& file = "") const {
    return folder_.file("model") + (file.empty() ? "" : "/" + file);
  }
  ProgramResult generate() { return weft_program({"generate", path(), "The", "-n", "2"}); }
  ScratchFolder folder_;
};

TEST_F(BadModel, TheCopyItselfIsGood) { EXPECT_EQ(generate().code, 0); }

TEST_F(BadModel, TruncatedWeights) {
  fs::resize_file(path("weights.safetensors"), fs::file_size(path("weights.safetensors")) - 100);
  expect_error(generate(), {"weights.safetensors"});
}
TEST_F(BadModel, WeightsWithoutAHeader) {
  fs::resize_file(path("weights.safetensors"), 5);
  expect_error(generate(), {"weights.safetensors"});
}
TEST_F(BadModel, HeaderThatClaimsTooMuch) {
  auto bytes = slurp(path("weights.safetensors"));
  bytes.replace(0, 8, std::string("\xff\xff\xff\xff\xff\xff\xff\x7f", 8));
  spill(path("weights.safetensors"), bytes);
  expect_error(generate(), {"weights.safetensors", "header"});
}
TEST_F(BadModel, HeaderThatLiesAboutAShape) {
  auto bytes = slurp(path("weights.safetensors"));
  spill(path("weights.safetensors"), replaced(bytes, "[257,32]", "[257,31]"));
  expect_error(generate(), {"weights.safetensors", "embedding.weight"});
}
TEST_F(BadModel, WeightsOfAnotherModel) {
  spill(path("model.yaml"), replaced(slurp(path("model.yaml")), "width: 32", "width: 48"));
  expect_error(generate(), {"weights.safetensors", "32", "48"});
}
TEST_F(BadModel, UnknownFieldInModelYaml) {
  spill(path("model.yaml"), replaced(slurp(path("model.yaml")), "width: 32", "widht: 32"));
  expect_error(generate(), {"model.yaml:", "did you mean 'width'?"});
}
TEST_F(BadModel, ATokenizerThatDoesNotMatch) {
  spill(path("tokenizer.json"), R"({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}})");
  expect_error(generate(), {"tokenizer.json"});
}
TEST_F(BadModel, NoModelAtAll) {
  const ScratchFolder empty;
  expect_error(weft_program({"generate", empty.path(), "The"}), {empty.path(), "model.yaml"});
  expect_error(weft_program({"eval", "/no/such/model", trained_model().text}), {"/no/such/model"});
  expect_error(weft_program({"inspect", "/no/such/model"}), {"/no/such/model"});
}

TEST(BadInput, EmptyFileToEvaluate) {
  const ScratchFolder folder;
  spill(folder.file("empty"), "");
  expect_error(weft_program({"eval", trained_model().run, folder.file("empty")}),
               {folder.file("empty"), "empty"});
  expect_error(weft_program({"eval", trained_model().run, folder.path()}), {folder.path(), "folder"});
}

TEST(BadInput, LogitsThatCannotBeWritten) {
  const auto& model = trained_model();
  const ScratchFolder folder;
  const std::string file = folder.file("logits");
  expect_error(weft_program({"logits", model.run, "--ids", "1,2", "--out", folder.file("no/such/folder")}),
               {"no/such/folder"});
  std::string ids = "1";
  for (int i = 0; i < 100; ++i) ids += ",2";
  const auto full = Program({"logits", model.run, "--ids", ids, "--out", file}).file_limit(20000).run();
  expect_error(full, {file, "File too large"});
  EXPECT_TRUE(files_below(folder.path()).empty());
}

TEST(BadInput, IdsThatAreNone) {
  const auto& model = trained_model();
  const auto run = [&](const std::string& ids) {
    const ScratchFolder folder;
    auto result = weft_program({"logits", model.run, "--ids", ids, "--out", folder.file("logits")});
    EXPECT_TRUE(files_below(folder.path()).empty());
    return result;
  };
  expect_error(run("1,x"), {"'x' is not a token id"});
  expect_error(run("1,,2"), {"not a token id"});
  expect_error(run("257"), {"257", "vocabulary"});
}

TEST(BadInput, OutputThatCannotBeWritten) {
  const auto result = Program({"mixers"}).output_to("/dev/full").run();
  expect_error(result, {"standard output", "No space left"});
  expect_error(Program({"generate", trained_model().run, "The", "-n", "3"}).output_to("/dev/full").run(),
               {"standard output"});
}

TEST(BadInput, FlagsThatAreOutsideTheirLimits) {
  const auto& model = trained_model();
  expect_error(weft_program({"generate", model.run, "x", "--top-p", "1.5"}), {"top-p", "1.5"});
  expect_error(weft_program({"generate", model.run, "x", "--temperature", "-1"}), {"temperature", "-1"});
  expect_error(weft_program({"generate", model.run, "x", "--dtype", "fp8"}), {"fp8", "bf16"});
  expect_error(weft_program({"generate", model.run, "x", "--device", "tpu"}), {"tpu", "cuda"});
  expect_error(weft_program({"eval", model.run, model.text, "--chunk", "0"}), {"chunk"});
  expect_error(Program({"eval", model.run, model.text}).environment("WEFT_KERNEL=fast").run(),
               {"WEFT_KERNEL", "fast", "avx2"});
}

TEST(BadInput, Usage) {
  expect_error(weft_program({}), {"no command"}, 2);
  expect_error(weft_program({"trian"}), {"trian", "did you mean 'train'?"}, 2);
  expect_error(weft_program({"generate"}), {"model", "weft generate --help"}, 2);
  expect_error(weft_program({"generate", "m", "--temprature", "1"}),
               {"--temprature", "did you mean '--temperature'?"}, 2);
  expect_error(weft_program({"generate", "m", "--tokens", "many"}), {"many"}, 2);
  expect_error(weft_program({"mixers", "atention"}), {"did you mean 'attention'?"});
}

TEST(BadInput, Plugins) {
  const std::string folder = WEFT_PLUGINS;
  expect_error(weft_program({"mixers", "--plugin", "/no/such/plugin.so"}), {"/no/such/plugin.so"});
  expect_error(weft_program({"mixers", "--plugin", trained_model().text}), {trained_model().text});
  expect_error(weft_program({"mixers", "--plugin", folder + "/other_version.so"}),
               {"other_version.so", "another version"});
  expect_error(weft_program({"mixers", "--plugin", folder + "/name_taken.so"}),
               {"swiglu", "registered already"});
}

}  // namespace
}  // namespace weft
