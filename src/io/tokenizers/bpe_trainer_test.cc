#include "io/tokenizers/bpe_trainer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <random>

#include "base/error.h"
#include "base/files.h"
#include "io/tokenizers/byte_letters.h"
#include "io/tokenizers/json_tokenizer.h"

namespace weft {
namespace {

using nlohmann::json;

std::vector<std::string> sample_texts() {
  std::mt19937 random(3);
  const std::vector<std::string> words = {"the",   "then", "there",   "mill", "miller",
                                          "river", "aaaa", "aaaaaaa", "é",    "東京"};
  std::vector<std::string> texts;
  for (int t = 0; t < 20; ++t) {
    std::string text;
    for (int w = 0; w < 30; ++w) text += words[random() % words.size()] + (random() % 5 ? " " : "\n");
    texts.push_back(text);
  }
  return texts;
}

std::string bytes_of_letters(const json& letters) {
  return letters_to_bytes(letters.get<std::string>()).value();
}

using Piece = std::vector<std::string>;

Piece letters_of(const std::string& text) {
  Piece letters;
  for (const char c : text) letters.emplace_back(1, c);
  return letters;
}

// GPT-2's pieces of a text whose words are parted by one space or one newline each.
std::vector<Piece> pieces_of(const std::vector<std::string>& texts) {
  std::vector<Piece> pieces;
  for (const auto& text : texts) {
    std::string piece;
    for (const char c : text) {
      if (!piece.empty() && (c == ' ' || c == '\n' || piece == "\n")) {
        pieces.push_back(letters_of(piece));
        piece.clear();
      }
      piece += c;
    }
    pieces.push_back(letters_of(piece));
  }
  return pieces;
}

// The definition itself, without any bookkeeping: count all pairs, merge the most frequent one (of equal ones
// that of the smaller ids), start again.
std::vector<std::pair<std::string, std::string>> slow_merges(const std::vector<std::string>& texts,
                                                             int wanted) {
  std::vector<Piece> pieces = pieces_of(texts);
  std::map<std::string, int> ids;
  for (const char c : bytes_by_letter()) ids.emplace(std::string(1, c), ids.size());
  std::vector<std::pair<std::string, std::string>> merges;
  while (static_cast<int>(merges.size()) < wanted) {
    std::map<std::pair<int, int>, int> counts;
    std::map<int, std::string> names;
    for (const auto& [name, id] : ids) names[id] = name;
    for (const auto& piece : pieces)
      for (size_t i = 0; i + 1 < piece.size(); ++i) ++counts[{ids[piece[i]], ids[piece[i + 1]]}];
    const auto best = std::max_element(counts.begin(), counts.end(),
                                       [](const auto& a, const auto& b) { return a.second < b.second; });
    if (best == counts.end() || best->second < 2) break;
    const std::string left = names[best->first.first], right = names[best->first.second];
    merges.emplace_back(left, right);
    ids.emplace(left + right, ids.size());
    for (auto& piece : pieces)
      for (size_t i = 0; i + 1 < piece.size(); ++i)
        if (piece[i] == left && piece[i + 1] == right) {
          piece[i] += right;
          piece.erase(piece.begin() + static_cast<std::ptrdiff_t>(i) + 1);
        }
  }
  return merges;
}

TEST(BpeTrainer, MergesAsTheDefinitionSays) {
  const auto texts = sample_texts();
  const json trained = json::parse(train_bpe(texts, {.vocab_size = 257 + 40}));
  std::vector<std::pair<std::string, std::string>> merges;
  for (const json& pair : trained["model"]["merges"])
    merges.emplace_back(bytes_of_letters(pair[0]), bytes_of_letters(pair[1]));
  EXPECT_EQ(merges, slow_merges(texts, 40));
}

TEST(BpeTrainer, TheResultIsATokenizer) {
  const auto texts = sample_texts();
  const auto made = make_json_tokenizer(
      train_bpe(texts, {.vocab_size = 290, .special_tokens = {"<|endoftext|>", "<|pad|>"}}), "t");
  const Tokenizer& tokenizer = *made;
  EXPECT_EQ(tokenizer.vocab_size(), 290);
  EXPECT_EQ(tokenizer.find("<|pad|>"), 289);
  EXPECT_EQ(tokenizer.end_of_text(), 288);
  for (const auto& text : texts) {
    const auto ids = tokenizer.encode(text);
    EXPECT_EQ(tokenizer.decode(ids), text);
    EXPECT_LT(ids.size(), text.size() / 2);
  }
  EXPECT_EQ(tokenizer.encode("x<|endoftext|>").back(), 288);
}

TEST(BpeTrainer, IsDeterministic) {
  EXPECT_EQ(train_bpe(sample_texts(), {.vocab_size = 300}), train_bpe(sample_texts(), {.vocab_size = 300}));
}

TEST(BpeTrainer, StopsWhenNothingIsFrequent) {
  const json trained = json::parse(train_bpe({"abab"}, {.vocab_size = 1000, .special_tokens = {}}));
  EXPECT_EQ(trained["model"]["merges"].size(), 1u);  // ab occurs twice, abab once
  EXPECT_EQ(trained["model"]["vocab"].size(), 257u);
}

TEST(BpeTrainer, UsesThePatternGiven) {
  const json trained = json::parse(train_bpe({"ab-ab-ab"}, {.vocab_size = 300, .pattern = "[a-z]|-"}));
  EXPECT_TRUE(trained["model"]["merges"].empty());
  EXPECT_THROW(train_bpe({"a"}, {.pattern = "(a"}), InputError);
}

TEST(BpeTrainer, TakesAnyBytes) {
  const auto tokenizer = make_json_tokenizer(train_bpe({"the \xff\xfe the"}, {.vocab_size = 262}), "t");
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("\xff the")), "\xff the");
}

TEST(BpeTrainer, TellsProgress) {
  std::vector<int64_t> seen;
  train_bpe(sample_texts(),
            {.vocab_size = 280, .progress = [&](int64_t done, int64_t) { seen.push_back(done); }});
  ASSERT_FALSE(seen.empty());
  EXPECT_EQ(seen.back(), 23);
}

TEST(BpeTrainer, ChecksItsInput) {
  EXPECT_THROW(train_bpe({"a"}, {.vocab_size = 256}), InputError);
  EXPECT_THROW(train_bpe({"a"}, {.vocab_size = 300, .special_tokens = {"x", "x"}}), InputError);
  EXPECT_THROW(train_bpe({"a"}, {.vocab_size = 300, .special_tokens = {""}}), InputError);
  EXPECT_THROW(train_bpe(std::vector<std::string>{}, {.vocab_size = 300}), InputError);
  EXPECT_THROW(train_bpe({""}, {.vocab_size = 300}), InputError);
}

}  // namespace
}  // namespace weft
