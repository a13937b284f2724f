#include "train/recipe.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "base/error.h"
#include "base/files.h"
#include "base/scratch_folder.h"

namespace weft {
namespace {

constexpr const char* kRecipe = R"(model:
  width: 16
  layers: [{mixer: attention, heads: 2, ffn: {swiglu: 32}}]
data:
  train: texts/a.txt
  length: 32
optimizer: {adamw: {lr: 0.01}}
run: {steps: 20}
claims: [{metric: loss, at_most: 2}]
)";

class RecipeTest : public testing::Test {
 protected:
  std::string write(const std::string& text) {
    const auto path = folder_.file("recipe.yaml");
    write_atomically(path, text);
    return path;
  }
  // The message of the error that loading gives.
  std::string error_of(const std::string& text, const std::vector<std::string>& sets = {}) {
    try {
      load_recipe(write(text), sets);
    } catch (const InputError& error) {
      return error.what();
    }
    return "no error";
  }
  std::string replaced(const std::string& from, const std::string& to) {
    std::string text = kRecipe;
    return text.replace(text.find(from), from.size(), to);
  }
  ScratchFolder folder_;
};

TEST_F(RecipeTest, PathsAreRelativeToTheRecipeAndSetsToTheCurrentFolder) {
  const auto path = write(kRecipe);
  const auto here = std::filesystem::current_path().string();
  EXPECT_EQ(load_recipe(path).data.train, std::vector{folder_.file("texts/a.txt")});
  EXPECT_EQ(load_recipe(path, {"data.train=[b.txt, /c.txt]"}).data.train,
            (std::vector<std::string>{here + "/b.txt", "/c.txt"}));
  EXPECT_EQ(load_recipe(path, {"run.dir=out"}).run.dir, "out");
  EXPECT_EQ(load_recipe(path).run.dir, "runs/" + std::filesystem::path(folder_.path()).filename().string());
}

TEST_F(RecipeTest, ResolvedRecipeReadsBackToItself) {
  const auto recipe = load_recipe(write(kRecipe), {"run.steps=200", "tokenizer={bpe: {vocab: 300}}"});
  EXPECT_EQ(recipe.run.steps, 200);
  const auto resolved = recipe.resolved();
  EXPECT_EQ(resolved.at("optimizer").at("adamw").at("beta1").as_double(), 0.9);
  EXPECT_EQ(resolved.at("tokenizer").at("bpe").at("min_count").as_int(), 2);
  EXPECT_EQ(resolved.at("claims").items().size(), 1u);
  EXPECT_EQ(load_recipe(write(resolved.dump())).resolved().dump(), resolved.dump());
}

TEST_F(RecipeTest, MistakesNameFileLineAndField) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {replaced("steps: 20", "step: 20"), "recipe.yaml:8: run.step: unknown field, did you mean 'steps'"},
      {replaced("steps: 20", "steps: many"),
       "recipe.yaml:8: run.steps: expected a whole number, found 'many'"},
      {replaced("steps: 20", "steps: 0"), "recipe.yaml:8: run.steps"},
      {replaced("steps: 20", "dtype: fp8"), "run.dtype: 'fp8' must be one of fp32, bf16"},
      {replaced("length: 32", "lenght: 32"),
       "recipe.yaml:6: data.lenght: unknown field, did you mean 'length'"},
      {replaced("adamw:", "adam:"),
       "recipe.yaml:7: optimizer.adam: 'adam' is not an optimizer, did you mean 'adamw'"},
      {replaced("lr: 0.01", "lr: [1]"), "recipe.yaml:7: optimizer.adamw.lr"},
      {replaced("  train: texts/a.txt\n", ""), "'train' is missing"},
      {replaced("  train: texts/a.txt\n", "  train: a.txt\n  valid: b.txt\n  valid_fraction: 0.1\n"),
       "not both"},
      {replaced("model:", "modle:"), "modle: unknown field, did you mean 'model'"},
      {std::string(kRecipe) + "tokenizer: {wordpiece: 3}\n", "recipe.yaml:10: tokenizer: expected bytes"},
      {std::string(kRecipe) + "tokenizer: {bpe: {vocab: 12}}\n",
       "recipe.yaml:10: tokenizer.bpe.vocab: 12 must be at least 257"},
      {std::string(kRecipe) + "schedule: {kind: linear}\n",
       "schedule.kind: 'linear' must be one of cosine, wsd, constant"},
      {replaced("claims: [{metric: loss, at_most: 2}]", "claims: 3"),
       "recipe.yaml:9: claims: expected a list"},
  };
  for (const auto& [text, expected] : cases) {
    const auto message = error_of(text);
    EXPECT_NE(message.find(expected), std::string::npos) << message << "\nexpected: " << expected;
  }
  EXPECT_NE(error_of(kRecipe, {"run.steps"}).find("expected field=value"), std::string::npos);
  EXPECT_NE(error_of(kRecipe, {"run.stepz=3"}).find("--set: run.stepz: unknown field"), std::string::npos);
}

TEST_F(RecipeTest, ConflictsNameWhatAResumeCannotBridge) {
  const auto path = write(kRecipe);
  const auto before = load_recipe(path).resolved();
  const auto after = [&](const std::vector<std::string>& sets) {
    return recipe_conflicts(before, load_recipe(path, sets).resolved());
  };
  EXPECT_TRUE(after({}).empty());
  EXPECT_TRUE(
      after({"run.steps=40", "run.dir=x", "run.keep=9", "data.train=elsewhere.txt", "claims=[]"}).empty());
  EXPECT_EQ(after({"run.batch=3", "optimizer.adamw.lr=0.5"}),
            (std::vector<std::string>{"optimizer.adamw.lr: 0.01 in the checkpoint, 0.5 now",
                                      "run.batch: 8 in the checkpoint, 3 now"}));
}

}  // namespace
}  // namespace weft
