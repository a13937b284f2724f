#include "train/validation.h"

#include <gtest/gtest.h>

#include <numbers>

#include "base/scratch_folder.h"
#include "io/tokenizers/byte_tokenizer.h"

namespace weft {
namespace {

class ValidationTest : public testing::Test {
 protected:
  ValidationTest() {
    const auto node = Node::parse("{vocab: 257, width: 8, layers: [{ffn: {swiglu: 8}}]}", "m.yaml");
    model_ = std::make_unique<Model>(read_options<ModelOptions>(node, "model"));
    model_->initialize(1);
  }
  // A file of documents, each followed by the end of text.
  TokenFile file(const std::vector<std::string>& documents) {
    const auto path = folder_.file("x.tokens");
    TokenFileWriter writer(path, bytes_.vocab_size(), bytes_.fingerprint());
    for (const auto& document : documents) {
      auto ids = bytes_.encode(document);
      ids.push_back(ByteTokenizer::kEndOfText);
      writer.add(ids);
    }
    writer.finish();
    return TokenFile(path);
  }
  ScratchFolder folder_;
  ByteTokenizer bytes_;
  std::unique_ptr<Model> model_;
};

TEST_F(ValidationTest, EveryTokenButFirstsIsScoredOnceWithAnyWindows) {
  const auto tokens = file({"a text of some length", "b", "and a third one"});
  const int64_t letters = 21 + 1 + 15;
  for (const int64_t length : {3, 7, 16, 100})
    for (const int64_t overlap : {0, 1, 2})
      for (const int64_t rows : {1, 4}) {
        const auto result =
            validate(*model_, tokens, bytes_, {.length = length, .overlap = overlap, .rows = rows});
        EXPECT_EQ(result.tokens, letters) << length << " " << overlap;  // 3 more ends, 3 fewer firsts
        EXPECT_EQ(result.bytes, letters - 3) << length << " " << overlap;
      }
}

TEST_F(ValidationTest, AModelWithoutMemoryHasTheSameLossWithAnyWindows) {
  const auto tokens = file({"a text of some length", "b", "and a third one"});
  const auto whole = validate(*model_, tokens, bytes_, {.length = 100});
  for (const int64_t overlap : {0, 3})
    EXPECT_NEAR(validate(*model_, tokens, bytes_, {.length = 5, .overlap = overlap, .rows = 3}).nats,
                whole.nats, 1e-3);
  EXPECT_NEAR(whole.bits_per_byte(), whole.nats / std::numbers::ln2 / static_cast<double>(whole.bytes),
              1e-12);
}

TEST_F(ValidationTest, BatchesLimitTheWork) {
  const auto tokens = file({std::string(1000, 'x')});
  const auto result = validate(*model_, tokens, bytes_, {.length = 10, .rows = 2, .batches = 3});
  EXPECT_EQ(result.tokens, 60);
}

}  // namespace
}  // namespace weft
