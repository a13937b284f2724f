#include "io/model_directory.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "base/error.h"
#include "base/scratch_folder.h"
#include "io/safetensors.h"
#include "io/tokenizers/byte_tokenizer.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

std::unique_ptr<Model> tiny_model(int64_t width = 16) {
  const auto node = Node::parse(fmt::format("name: tiny\nvocab: 257\nwidth: {}\nlayers: [{{mixer: attention, "
                                            "heads: 2, ffn: {{swiglu: 24}}}}]\n",
                                            width),
                                "tiny.yaml");
  auto model = std::make_unique<Model>(read_options<ModelOptions>(node, "model"));
  model->initialize(7);
  return model;
}

std::string error_of(const std::string& path) {
  try {
    load_model(path);
  } catch (const InputError& error) {
    return error.what();
  }
  return "no error";
}

TEST(ModelDirectory, LoadsTheSameModel) {
  ScratchFolder folder;
  const auto path = folder.file("model");
  const auto model = tiny_model();
  save_model(path, *model, ByteTokenizer());
  const auto loaded = load_model(path);
  EXPECT_EQ(loaded.tokenizer->fingerprint(), ByteTokenizer().fingerprint());
  EXPECT_EQ(loaded.model->describe().dump(), model->describe().dump());
  EXPECT_EQ(loaded.path, path);
  const auto a = model->parameters(), b = loaded.model->parameters();
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].name, b[i].name);
    EXPECT_TRUE(at::equal(a[i].parameter->value, b[i].parameter->value)) << a[i].name;
  }
  const auto ids = at::arange(12, at::kLong).view({1, 12});
  EXPECT_TRUE(at::equal(model->run(ids), loaded.model->run(ids)));
}

TEST(ModelDirectory, KeepsTheTypeOfTheFile) {
  ScratchFolder folder;
  const auto model = tiny_model();
  model->to(at::kBFloat16);
  save_model(folder.file("model"), *model, ByteTokenizer());
  const auto loaded = load_model(folder.file("model"));
  EXPECT_EQ(loaded.model->compute_dtype(), at::kBFloat16);
  for (const auto& [name, parameter] : loaded.model->parameters())
    EXPECT_EQ(parameter->value.scalar_type(), parameter->rules.keep_float ? at::kFloat : at::kBFloat16)
        << name;
}

TEST(ModelDirectory, ReplacesAModelButNothingElse) {
  ScratchFolder folder;
  const auto path = folder.file("model");
  save_model(path, *tiny_model(16), ByteTokenizer());
  save_model(path, *tiny_model(32), ByteTokenizer());
  EXPECT_EQ(load_model(path).model->options().width, 32);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), fs::directory_iterator()), 1);
  fs::create_directory(folder.file("other"));
  EXPECT_THROW(save_model(folder.file("other"), *tiny_model(), ByteTokenizer()), InputError);
}

TEST(ModelDirectory, WeightsThatDoNotFitAreNamed) {
  ScratchFolder folder;
  const auto path = folder.file("model"), weights = path + "/weights.safetensors";
  save_model(path, *tiny_model(), ByteTokenizer());
  const SafeTensors file(weights);
  NamedTensors tensors;
  for (const auto& name : file.names()) tensors.emplace_back(name, file.load(name));
  const auto rewrite = [&](NamedTensors changed) {
    write_safetensors(weights, std::move(changed));
    return error_of(path);
  };

  auto fewer = tensors;
  const auto gone = fewer.back().first;
  fewer.pop_back();
  EXPECT_NE(rewrite(fewer).find("missing " + gone), std::string::npos);
  auto more = tensors;
  more.emplace_back("extra.weight", at::zeros({2}));
  EXPECT_NE(rewrite(more).find("unexpected extra.weight"), std::string::npos);
  auto other = tensors;
  other.front().second = at::zeros({3, 5});
  const auto message = rewrite(other);
  EXPECT_NE(message.find("'" + other.front().first + "' is [3, 5] but the model has ["), std::string::npos)
      << message;

  fs::resize_file(weights, fs::file_size(weights) - 4);
  EXPECT_NE(error_of(path).find("weights.safetensors"), std::string::npos);
}

TEST(ModelDirectory, AnotherTokenizerAndAMissingFolderAreErrors) {
  ScratchFolder folder;
  const auto path = folder.file("model");
  save_model(path, *tiny_model(), ByteTokenizer());
  auto config = Node::load(path + "/model.yaml");
  config.set("tokenizer.fingerprint", "other");
  write_atomically(path + "/model.yaml", config.dump());
  EXPECT_NE(error_of(path).find("not the tokenizer that the model was made for"), std::string::npos);
  EXPECT_NE(error_of(folder.file("nothing")).find("does not exist; expected a GGUF file"), std::string::npos);
}

TEST(ModelDirectory, FindsTheLatestAndTheBestCheckpointOfARun) {
  ScratchFolder folder;
  const auto run = folder.file("run");
  for (const int64_t step : {20, 100}) {
    fs::create_directories(run + "/checkpoints");
    save_model(checkpoint_path(run, step), *tiny_model(), ByteTokenizer());
    write_atomically(checkpoint_path(run, step) + "/trainer.yaml", std::string_view("best_step: 20\n"));
  }
  fs::create_directory(run + "/checkpoints/step-00000300.tmp-1");
  EXPECT_EQ(find_model_folder(run), checkpoint_path(run, 100));
  EXPECT_EQ(find_model_folder(run + "/latest"), checkpoint_path(run, 100));
  EXPECT_EQ(find_model_folder(run + "/best"), checkpoint_path(run, 20));
  save_model(run + "/model", *tiny_model(), ByteTokenizer());
  EXPECT_EQ(find_model_folder(run), run + "/model");
}

}  // namespace
}  // namespace weft
