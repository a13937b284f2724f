// Tokenizers that are not a tokenizer.json.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/files.h"
#include "base/scratch_folder.h"
#include "io/tokenizers/base64.h"
#include "io/tokenizers/gguf_tokenizer.h"
#include "io/tokenizers/json_tokenizer.h"
#include "io/tokenizers/rwkv_vocabulary.h"
#include "io/tokenizers/sentencepiece_model.h"
#include "io/tokenizers/tiktoken.h"
#include "io/tokenizers/utf8.h"

namespace weft {
namespace {

using nlohmann::json;
using Ids = std::vector<int64_t>;

std::string streamed_text(const Tokenizer& tokenizer, const Ids& ids) {
  StreamDecoder stream(tokenizer);
  std::string text;
  for (const int64_t id : ids) text += stream.push(id);
  return text + stream.finish();
}

// Saved and loaded again it is the same.
void expect_saved(const Tokenizer& tokenizer) {
  const ScratchFolder folder;
  tokenizer.save(folder.file("tokenizer.json"));
  EXPECT_EQ(load_tokenizer(folder.path())->fingerprint(), tokenizer.fingerprint());
}

const json& sentencepiece_cases() {
  static const json all = json::parse(read_text("tests/data/tokenizers/sentencepiece.json"));
  return all;
}

TEST(SentencePiece, AgreesWithTheLibrary) {
  for (const json& one : sentencepiece_cases()["models"]) {
    SCOPED_TRACE(one["name"].get<std::string>());
    const auto tokenizer = read_tokenizer(*from_base64(one["model"].get<std::string>()), "test.model");
    for (size_t i = 0; i < one["cases"].size(); ++i) {
      const Ids ids = one["cases"][i]["ids"].get<Ids>();
      const auto text = sentencepiece_cases()["texts"][i].get<std::string>();
      EXPECT_EQ(tokenizer->encode(text, {.parse_special = false}), ids) << text;
      EXPECT_EQ(tokenizer->decode(ids), one["cases"][i]["decoded"].get<std::string>());
      EXPECT_EQ(streamed_text(*tokenizer, ids), one["cases"][i]["decoded"].get<std::string>());
    }
    for (const json& decoding : one["decode_cases"]) {
      EXPECT_EQ(tokenizer->decode(decoding["ids"].get<Ids>()), decoding["decoded"].get<std::string>());
      EXPECT_EQ(streamed_text(*tokenizer, decoding["ids"].get<Ids>()),
                decoding["decoded"].get<std::string>());
    }
    expect_saved(*tokenizer);
  }
}

TEST(SentencePiece, ControlPiecesAreFoundOnlyWhenAsked) {
  const auto tokenizer =
      read_tokenizer(*from_base64(sentencepiece_cases()["models"][1]["model"].get<std::string>()), "t.model",
                     read_tokenizer_config(R"({"add_bos_token": true, "eos_token": "</s>"})", "c"));
  EXPECT_EQ(tokenizer->encode("</s>"), Ids{2});
  EXPECT_GT(tokenizer->encode("</s>", {.parse_special = false}).size(), 1u);
  EXPECT_EQ(tokenizer->encode("</s>", {.add_special = true}), (Ids{1, 2}));
  EXPECT_EQ(tokenizer->end_of_text(), 2);
}

std::string ranks_file(const std::vector<std::string>& more) {
  std::string text;
  for (int i = 0; i < 256; ++i)
    text += to_base64(std::string(1, static_cast<char>(i))) + fmt::format(" {}\n", i);
  for (size_t i = 0; i < more.size(); ++i) text += to_base64(more[i]) + fmt::format(" {}\n", 256 + i);
  return text;
}

TEST(Tiktoken, MergesByRankAndFindsSpecialTokens) {
  const auto tokenizer = read_tokenizer(ranks_file({"ll", "he", "hell", " w"}), "cl100k_base.tiktoken");
  EXPECT_EQ(tokenizer->encode("hell"), Ids{258});  // a piece that is a token
  EXPECT_EQ(tokenizer->encode("hello"), (Ids{258, 'o'}));
  EXPECT_EQ(tokenizer->encode(" w\xff<|endoftext|>"), (Ids{259, 255, 100257}));
  EXPECT_EQ(tokenizer->decode({259, 255}), " w\xff");
  EXPECT_EQ(tokenizer->end_of_text(), 100257);
  expect_saved(*tokenizer);
}

TEST(Tiktoken, NeedsAPattern) {
  EXPECT_THROW(read_tokenizer(ranks_file({"ab"}), "mine.tiktoken"), InputError);
  const auto config = read_tokenizer_config(
      R"({"pat_str": "\\d++|\\D+", "added_tokens_decoder": {"300": {"content": "<e>", "special": true}}, "eos_token": "<e>"})",
      "c");
  const auto tokenizer = read_tokenizer(ranks_file({"ab", "1a"}), "mine.tiktoken", config);
  EXPECT_EQ(tokenizer->encode("ab1ab<e>"), (Ids{256, '1', 256, 300}));
  EXPECT_EQ(tokenizer->end_of_text(), 300);
}

TEST(Rwkv, TakesTheLongestToken) {
  std::string text;
  for (int i = 0; i < 256; ++i) text += fmt::format("{} b'\\x{:02x}' 1\n", i + 1, i);
  text += "257 'ab' 2\n258 'abc' 3\n259 \"\\n\\u00e9\" 3\n";
  const auto tokenizer = read_tokenizer(text, "rwkv_vocab.txt");
  EXPECT_EQ(tokenizer->encode("abcab\n\xc3\xa9"), (Ids{258, 257, 259}));
  EXPECT_EQ(tokenizer->encode("<|endoftext|>").size(), 13u);
  EXPECT_EQ(tokenizer->decode({0, 257}), "ab");
  EXPECT_EQ(tokenizer->vocab_size(), 260);
  expect_saved(*tokenizer);
}

TEST(Letters, DnaInLettersAndWords) {
  const auto letters = load_tokenizer("dna");
  EXPECT_EQ(letters->encode("ACgtNx"), (Ids{0, 1, 2, 3, 4, 4}));
  EXPECT_EQ(letters->decode({0, 1, 2, 3, 4, 5}), "ACGTN");
  const auto words = load_tokenizer("dna-3");
  EXPECT_EQ(words->vocab_size(), 125 + 5 + 1);
  EXPECT_EQ(words->encode("ACGTA"), (Ids{0 * 25 + 1 * 5 + 2, 125 + 3, 125 + 0}));
  EXPECT_EQ(words->decode(words->encode("ACGTANNA")), "ACGTANNA");
  EXPECT_EQ(load_tokenizer("characters")->decode(load_tokenizer("characters")->encode("a\tZ\xc3\xa9")),
            "a\tZ\xEF\xBF\xBD");
  EXPECT_THROW(load_tokenizer("dna-9"), InputError);
  for (const char* name : {"dna", "dna-3", "characters", "bytes"}) expect_saved(*load_tokenizer(name));
}

TEST(Gguf, LlamaIsSentencePiece) {
  for (const json& one : sentencepiece_cases()["models"]) {
    if (one["name"] != "bpe_bytes") continue;
    const auto model = parse_sentencepiece_model(*from_base64(one["model"].get<std::string>()), "t");
    GgufTokenizer given{.source = "t.gguf", .model = "llama", .bos = 1, .eos = 2};
    for (const auto& piece : model.pieces) {
      given.tokens.push_back(piece.text);
      given.scores.push_back(piece.score);
      given.token_types.push_back(static_cast<int32_t>(piece.type));
    }
    const auto tokenizer = make_gguf_tokenizer(given);
    for (size_t i = 0; i < one["cases"].size(); ++i)
      EXPECT_EQ(
          tokenizer->encode(sentencepiece_cases()["texts"][i].get<std::string>(), {.parse_special = false}),
          one["cases"][i]["ids"].get<Ids>());
    EXPECT_EQ(tokenizer->encode("", {.add_special = true}), Ids{1});
    expect_saved(*tokenizer);
  }
}

TEST(Gguf, Gpt2IsByteLevel) {
  const json root = json::parse(read_text("tests/data/tokenizers/bpe512/tokenizer.json"));
  const json expected = json::parse(read_text("tests/data/tokenizers/bpe512/expected.json"));
  GgufTokenizer given{.source = "t.gguf", .model = "gpt2", .pre = "gpt-2"};
  given.tokens.resize(root["model"]["vocab"].size());
  for (const auto& [token, id] : root["model"]["vocab"].items()) given.tokens[id.get<size_t>()] = token;
  for (const json& merge : root["model"]["merges"])
    given.merges.push_back(merge[0].get<std::string>() + " " + merge[1].get<std::string>());
  const auto tokenizer = make_gguf_tokenizer(given);
  for (const json& one : expected["cases"])
    EXPECT_EQ(tokenizer->encode(one["text"].get<std::string>()), one["ids"].get<Ids>());
  expect_saved(*tokenizer);
  given.pre = "unheard-of";
  EXPECT_THROW(make_gguf_tokenizer(given), Unsupported);
  given.pre = "default";
  given.eos = 512;
  EXPECT_THROW(make_gguf_tokenizer(given), InputError);
}

TEST(Gguf, BertAndRwkv) {
  GgufTokenizer bert{.source = "t.gguf", .model = "bert", .bos = 1, .separator = 2};
  bert.tokens = {"[UNK]", "[CLS]", "[SEP]", "\xE2\x96\x81new", "s", "\xE2\x96\x81."};
  bert.token_types = {2, 3, 3, 1, 1, 1};
  bert.unknown = 0;
  const auto words = make_gguf_tokenizer(bert);
  EXPECT_EQ(words->encode("News. x", {.add_special = true}), (Ids{1, 3, 4, 5, 0, 2}));
  EXPECT_EQ(words->decode({3, 4, 5}), "news .");
  GgufTokenizer rwkv{.source = "t.gguf", .model = "rwkv"};
  rwkv.tokens = {"<s>"};
  for (int i = 0; i < 256; ++i) rwkv.tokens.push_back(fmt::format("\\x{:02x}", i));
  rwkv.tokens.push_back("ab\\n");
  EXPECT_EQ(make_gguf_tokenizer(rwkv)->encode("xab\n"), (Ids{'x' + 1, 257}));
}

}  // namespace
}  // namespace weft
