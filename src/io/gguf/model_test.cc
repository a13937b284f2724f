// GGUF files that llama.cpp's converter made of tests/data/hf_tiny (tools/make_gguf_models.py), against those folders.
#include "io/gguf/model.h"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <set>

#include "base/error.h"
#include "base/scratch_folder.h"
#include "io/gguf/source.h"
#include "io/json_place.h"
#include "io/pretrained/huggingface.h"
#include "io/safetensors.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

std::string checkpoint_of(const std::string& name) { return "tests/data/hf_tiny/" + name; }
std::string file_of(const std::string& name) { return "tests/data/gguf/" + name + ".gguf"; }

at::Tensor whole_logits(Model& model, const std::vector<int64_t>& ids) {
  const at::NoGradGuard no_grad;
  model.to(at::kDouble);
  model.set_compute_dtype(at::kDouble);
  auto state = model.initial_state(1);
  return model.logits(model.run(at::tensor(ids, at::kLong).unsqueeze(0), state))[0];
}

// The largest difference from transformers' logits, as a share of the largest logit.
double error_of(Model& model, const std::string& folder) {
  const auto reference = parse_json(read_text(folder + "/reference.json"), folder);
  const auto ids = reference.at("input_ids").get<std::vector<std::vector<int64_t>>>();
  double error = 0;
  for (size_t i = 0; i < ids.size(); ++i) {
    const auto ours = whole_logits(model, ids[i]);
    const auto bytes = read_text(fmt::format("{}/logits_{}.f32", folder, i));
    auto theirs = at::empty(ours.sizes(), at::kFloat);
    require(bytes.size() == theirs.nbytes(), "{}: logits of another size", folder);
    std::memcpy(theirs.mutable_data_ptr(), bytes.data(), bytes.size());
    error = std::max(error, ((ours - theirs).abs().max() / theirs.abs().max()).item<double>());
  }
  return error;
}

class GgufModel : public testing::TestWithParam<std::string> {};

// Names and layouts, tensor by tensor; 1 + w and log(exp(a)) cost a rounding or two. The multipliers of Falcon H1 are
// inside the file's tensors: only its logits can be compared.
TEST_P(GgufModel, TensorsAreThoseOfTheCheckpoint) {
  const auto name = GetParam();
  const GgufFile file(file_of(name));
  const auto text = gguf_config_text(file);
  const auto json = parse_json(text, file.path());
  const JsonPlace place(json, file.path());
  GgufNames names(file);
  find_gguf_architecture(file.metadata().architecture(), "test").name_tensors(ConfigReader(place), names);
  const auto source = gguf_tensor_source(file, names);
  const SafeTensors checkpoint(checkpoint_of(name));
  std::set<std::string> expected;
  for (const auto& tensor : checkpoint.names()) {
    // transformers writes this one under a name of its own.
    auto wanted = tensor;
    if (const auto at = wanted.find("block_sparse_moe.");
        at != std::string::npos && !source->contains(wanted))
      wanted.replace(at, 17, "mlp.");
    expected.insert(wanted);
    ASSERT_TRUE(source->contains(wanted)) << wanted;
    const auto ours = source->view(wanted), theirs = checkpoint.view(tensor);
    ASSERT_EQ(ours.sizes(), theirs.sizes()) << wanted;
    if (name == "falcon_h1") continue;
    EXPECT_TRUE(at::allclose(ours, theirs, 1e-6, 1e-6)) << wanted << ": " << (ours - theirs).abs().max();
  }
  for (const auto& tensor : source->names()) EXPECT_TRUE(expected.count(tensor)) << tensor;
}

TEST_P(GgufModel, LogitsAreThoseOfTransformers) {
  auto loaded = load_model(file_of(GetParam()));
  EXPECT_TRUE(loaded.notes.empty()) << loaded.notes.front();
  EXPECT_LE(error_of(*loaded.model, checkpoint_of(GetParam())), 1e-5);
}

// The checkpoint written as GGUF and read again; and that file as a Hugging Face folder.
TEST_P(GgufModel, WrittenAndReadAgain) {
  const ScratchFolder scratch;
  const auto path = scratch.path() + "/out.gguf", folder = scratch.path() + "/hf";
  save_gguf(path, load_huggingface(checkpoint_of(GetParam())), GgmlType::F32);
  auto loaded = load_gguf(path);
  EXPECT_LE(error_of(*loaded.model, checkpoint_of(GetParam())), 1e-5);
  save_huggingface(folder, load_gguf(path));
  EXPECT_LE(error_of(*load_huggingface(folder).model, checkpoint_of(GetParam())), 1e-5);
}

// The same tensors under the same names, and metadata that says the same, as the converter's.
TEST_P(GgufModel, WrittenAsTheConverterWrites) {
  const ScratchFolder scratch;
  const auto path = scratch.path() + "/out.gguf";
  save_gguf(path, load_huggingface(checkpoint_of(GetParam())), GgmlType::F32);
  const GgufFile ours(path), theirs(file_of(GetParam()));
  EXPECT_EQ(ours.metadata().architecture(), theirs.metadata().architecture());
  for (const auto& [name, tensor] : theirs.tensors()) {
    ASSERT_TRUE(ours.contains(name)) << name;
    ASSERT_EQ(ours.tensor(name).shape, tensor.shape) << name;
    EXPECT_TRUE(at::allclose(ours.view(name), theirs.view(name), 1e-5, 1e-6)) << name;
  }
  EXPECT_EQ(ours.tensors().size(), theirs.tensors().size());
}

std::vector<std::string> gguf_models() {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator("tests/data/gguf"))
    if (fs::exists(checkpoint_of(entry.path().stem()))) names.push_back(entry.path().stem());
  std::sort(names.begin(), names.end());
  return names;
}
INSTANTIATE_TEST_SUITE_P(, GgufModel, testing::ValuesIn(gguf_models()),
                         [](const auto& info) { return info.param; });

TEST(GgufModels, WeftFoldersKeepTheConfig) {
  const ScratchFolder scratch;
  const auto weft = scratch.path() + "/weft", hf = scratch.path() + "/hf";
  save_model(weft, load_model(file_of("llama")));
  const auto loaded = load_model(weft);
  EXPECT_FALSE(loaded.config_text.empty());
  EXPECT_EQ(loaded.tokenizer, nullptr);
  save_huggingface(hf, loaded);
  const SafeTensors before(checkpoint_of("llama")), after(hf);
  EXPECT_EQ(before.names(), after.names());
  for (const auto& name : before.names()) EXPECT_TRUE(before.view(name).equal(after.view(name))) << name;
}

// llama.cpp's converter leaves out what it has no keys for.
TEST(GgufModels, Plamo2KeepsWindowsAndRotaryBases) {
  const ScratchFolder scratch;
  const auto path = scratch.path() + "/out.gguf";
  save_gguf(path, load_huggingface(checkpoint_of("plamo2_window")), GgmlType::F32);
  auto loaded = load_gguf(path);
  EXPECT_LE(error_of(*loaded.model, checkpoint_of("plamo2_window")), 1e-5);
}

TEST(GgufModels, QuantizedAndHalfFiles) {
  const ScratchFolder scratch;
  const auto source = load_model(file_of("llama"));
  for (const auto type : {GgmlType::F16, GgmlType::BF16, GgmlType::Q8_0}) {
    const auto path = fmt::format("{}/{}.gguf", scratch.path(), static_cast<int>(type));
    save_gguf(path, source, type);
    const GgufFile file(path);
    EXPECT_EQ(file.tensor("blk.0.attn_q.weight").type, type);
    EXPECT_EQ(file.tensor("blk.0.attn_norm.weight").type, GgmlType::F32);
    auto loaded = load_gguf(path);
    EXPECT_LE(error_of(*loaded.model, checkpoint_of("llama")), 0.05);
  }
}

TEST(GgufModels, WhatCannotBeOpenedIsNamed) {
  const ScratchFolder scratch;
  const auto path = scratch.path() + "/m.gguf";
  const auto message = [&] {
    try {
      load_model(path);
    } catch (const InputError& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  GgufMetadata metadata(path);
  write_gguf(path, metadata, {});
  EXPECT_NE(message().find("general.architecture: missing"), std::string::npos) << message();
  metadata.set_text("general.architecture", "lama");
  write_gguf(path, metadata, {});
  EXPECT_NE(message().find("did you mean 'llama'"), std::string::npos) << message();
  metadata.set_text("general.architecture", "llama");
  const auto embedding = [] { return at::zeros({4, 8}); };
  write_gguf(path, metadata, {{"token_embd.weight", {4, 8}, GgmlType::F32, embedding}});
  EXPECT_NE(message().find("llama.embedding_length: missing"), std::string::npos) << message();
}

// Frequency factors are read back as the scaling they came from, others as explicit factors.
TEST(GgufModels, RopeFactors) {
  const ScratchFolder scratch;
  const auto path = scratch.path() + "/rope.gguf";
  auto source = load_model(file_of("llama"));
  auto config = nlohmann::json::parse(source.config_text);
  config["rope_parameters"] = {{"rope_type", "llama3"},   {"rope_theta", 500000.0},
                               {"factor", 8.0},           {"low_freq_factor", 1.0},
                               {"high_freq_factor", 4.0}, {"original_max_position_embeddings", 8192}};
  source.config_text = config.dump();
  save_gguf(path, source, GgmlType::F32);
  const auto read = nlohmann::json::parse(gguf_config_text(GgufFile(path)));
  EXPECT_EQ(read["rope_parameters"], config["rope_parameters"]);
}

}  // namespace
}  // namespace weft
