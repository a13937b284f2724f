// Configs that lie, ask for the impossible or are no configs: each is refused by a message that names file, key and
// value, before anything of that size is made.
#include <gtest/gtest.h>

#include <filesystem>

#include "base/error.h"
#include "base/files.h"
#include "base/scratch_folder.h"
#include "io/json_place.h"
#include "io/pretrained/huggingface.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

const std::string kLlama = "tests/data/hf_tiny/llama";

class HostileConfig : public testing::Test {
 protected:
  HostileConfig() {
    for (const char* name : {"config.json", "model.safetensors"})
      fs::copy(kLlama + "/" + name, folder_.file(name));
  }
  std::string refusal() const {
    try {
      load_huggingface(folder_.path());
    } catch (const Bug& bug) {
      return std::string("a bug: ") + bug.what();
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  }
  void expect(const std::string& config, const std::string& words) {
    write_atomically(folder_.file("config.json"), std::string_view(config));
    const auto message = refusal();
    EXPECT_NE(message.find(words), std::string::npos) << config.substr(0, 80) << "\n  gave: " << message;
    EXPECT_NE(message.find("config.json"), std::string::npos) << message;
  }
  // The tiny Llama with one key set to that JSON.
  static std::string with(const std::string& key, const std::string& value) {
    auto config = parse_json(read_text(kLlama + "/config.json"), "config.json");
    config[key] = nlohmann::json::parse(value);
    return config.dump();
  }
  static std::string without(const std::string& key) {
    auto config = parse_json(read_text(kLlama + "/config.json"), "config.json");
    config.erase(key);
    return config.dump();
  }
  ScratchFolder folder_;
};

TEST_F(HostileConfig, TextThatIsNoConfig) {
  expect("", "not valid JSON");
  expect("{\"model_type\": \"llama\"", "not valid JSON");
  expect("[1, 2]", "expected an object");
  expect("{\"model_type\": \"ll\xff\"}", "not valid JSON");
  expect("{\"model_type\": 3}", "expected text");
  expect("{}", "'model_type' is missing");
  expect(R"({"model_type": "llama", "model_type": "gpt2"})", "given twice");
  expect(std::string(5000, '[') + std::string(5000, ']'), "nested more than");
  expect("{\"hidden_size\": Infinit}", "not valid JSON");
  expect("\xef\xbb\xbf{}", "'model_type' is missing");
}

TEST_F(HostileConfig, KeysThatAreNotUnderstood) {
  expect(with("frobnicate", "17"), "frobnicate: 17");
  expect(with("rope_parameters", R"({"rope_type": "default", "rope_theta": 1e4, "twist": 2})"),
         "rope_parameters.twist: 2");
  expect(with("rope_parameters", R"({"rope_type": "corkscrew"})"), "corkscrew");
  expect(with("hidden_act", "\"swoosh\""), "swoosh");
  expect(R"({"model_type": "llamma"})", "did you mean 'llama'");
}

TEST_F(HostileConfig, ValuesOfAnotherType) {
  expect(with("hidden_size", "\"32\""), "hidden_size: expected a whole number");
  expect(with("hidden_size", "32.5"), "hidden_size: expected a whole number");
  expect(with("rms_norm_eps", "\"small\""), "rms_norm_eps: expected a number");
  expect(with("tie_word_embeddings", "1"), "tie_word_embeddings: expected true or false");
  expect(with("rope_parameters", "[]"), "rope_parameters: expected an object");
  expect(without("hidden_size"), "'hidden_size' is missing");
  expect(without("num_hidden_layers"), "'num_hidden_layers' is missing");
}

TEST_F(HostileConfig, SizesThatCannotBe) {
  for (const char* key : {"hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim",
                          "intermediate_size", "vocab_size", "num_hidden_layers"})
    for (const char* value : {"0", "-1", "-9223372036854775808", "18446744073709551615",
                              "9223372036854775807", "2147483647", "1000000", "33"}) {
      write_atomically(folder_.file("config.json"), std::string_view(with(key, value)));
      const auto message = refusal();
      EXPECT_EQ(message.find("a bug"), std::string::npos) << key << " " << value << ": " << message;
      EXPECT_NE(message, "no error") << key << " " << value;
    }
  expect(with("num_hidden_layers", "1000000"), "layers");
  expect(with("vocab_size", "99999999999"), "vocab_size: 99999999999 is out of range");
  write_atomically(folder_.file("config.json"), std::string_view(with("hidden_size", "2147483647")));
  EXPECT_NE(refusal().find("is [128, 32], expected [128, 2147483647]"), std::string::npos) << refusal();
}

// One key of every tiny model at a time: nothing but a message of the user's comes of it.
TEST_F(HostileConfig, NoSizeOfAnyModelIsABugOrACrash) {
  int tried = 0;
  for (const auto& entry : fs::directory_iterator("tests/data/hf_tiny")) {
    if (!fs::exists(entry.path() / "config.json")) continue;
    const auto config = parse_json(read_text(entry.path() / "config.json"), "config.json");
    fs::copy_file(entry.path() / "model.safetensors", folder_.file("model.safetensors"),
                  fs::copy_options::overwrite_existing);
    for (const auto& [key, value] : config.items()) {
      std::vector<nlohmann::json> wrong;
      if (value.is_number_integer()) wrong = {0, -1, 5};
      if (value.is_array()) {
        wrong.push_back(nlohmann::json::array());
        auto shorter = nlohmann::json::array();
        if (!value.empty()) shorter.push_back(value[0]);
        wrong.push_back(shorter);
      }
      for (const auto& other : wrong) {
        auto changed = config;
        changed[key] = other;
        write_atomically(folder_.file("config.json"), std::string_view(changed.dump()));
        const auto message = refusal();
        EXPECT_EQ(message.find("a bug"), std::string::npos)
            << entry.path() << " " << key << ": " << other << ": " << message;
        ++tried;
      }
    }
  }
  EXPECT_GT(tried, 2000);
}

TEST_F(HostileConfig, AnotherModelsWeights) {
  write_atomically(folder_.file("config.json"), std::string_view(with("num_hidden_layers", "3")));
  EXPECT_NE(refusal().find("model.layers.2."), std::string::npos) << refusal();
  write_atomically(folder_.file("config.json"), std::string_view(with("intermediate_size", "40")));
  EXPECT_NE(refusal().find("model.layers.0.mlp.gate_proj.weight' is [48, 32], expected [40, 32]"),
            std::string::npos)
      << refusal();
  fs::remove(folder_.file("model.safetensors"));
  EXPECT_NE(refusal().find("holds neither model.safetensors nor"), std::string::npos) << refusal();
}

}  // namespace
}  // namespace weft
