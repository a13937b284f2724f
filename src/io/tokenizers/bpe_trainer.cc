// Counts distinct pieces once, then merges pair after pair. A pair knows the pieces it occurs in, so a merge
// touches only those; candidates wait in a heap and are checked against the current counts when they come up.
#include "io/tokenizers/bpe_trainer.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <queue>
#include <set>
#include <unordered_map>

#include "base/error.h"
#include "io/tokenizers/bpe_model.h"
#include "io/tokenizers/byte_letters.h"
#include "io/tokenizers/merge_table.h"
#include "io/tokenizers/pre_tokenizer.h"
#include "io/tokenizers/utf8.h"

namespace weft {

namespace {

using nlohmann::json;

constexpr int64_t kProgressEvery = 32;

struct Word {
  std::vector<int32_t> symbols;
  int64_t count;
};

class Trainer {
 public:
  explicit Trainer(const std::unordered_map<std::string, int64_t>& pieces) {
    tokens_.resize(256);
    int32_t ids[256];
    const std::string alphabet = bytes_by_letter();
    for (int32_t id = 0; id < 256; ++id) {
      tokens_[static_cast<size_t>(id)] = alphabet.substr(static_cast<size_t>(id), 1);
      ids[static_cast<unsigned char>(alphabet[static_cast<size_t>(id)])] = id;
    }
    words_.reserve(pieces.size());
    for (const auto& [piece, count] : pieces) {
      if (piece.size() < 2) continue;
      Word word{{}, count};
      for (const char byte : piece) word.symbols.push_back(ids[static_cast<unsigned char>(byte)]);
      words_.push_back(std::move(word));
    }
    for (size_t w = 0; w < words_.size(); ++w) count_pairs(w);
    for (const auto& [key, pair] : pairs_) heap_.push({pair.count, key});
    changed_.clear();
  }

  // Merges until there are `wanted` merges or no pair is left that is frequent enough.
  void run(int64_t wanted, int64_t min_count, const std::function<void(int64_t, int64_t)>& progress) {
    while (static_cast<int64_t>(merges_.size()) < wanted && merge_next(min_count))
      if (progress && static_cast<int64_t>(merges_.size()) % kProgressEvery == 0)
        progress(static_cast<int64_t>(merges_.size()), wanted);
    if (progress) progress(static_cast<int64_t>(merges_.size()), wanted);
  }

  // By id, as bytes.
  const std::vector<std::string>& tokens() const { return tokens_; }
  const std::vector<std::pair<int32_t, int32_t>>& merges() const { return merges_; }

 private:
  struct Pair {
    int64_t count = 0;
    std::vector<uint32_t> words;  // where it occurred at some time; may repeat
  };
  struct Candidate {
    int64_t count;
    uint64_t key;
    bool operator<(const Candidate& other) const {
      return count != other.count ? count < other.count : key > other.key;
    }
  };

  void count_pairs(size_t w) {
    const Word& word = words_[w];
    for (size_t i = 0; i + 1 < word.symbols.size(); ++i) {
      const uint64_t key = pair_key(word.symbols[i], word.symbols[i + 1]);
      Pair& pair = pairs_[key];
      pair.count += word.count;
      if (pair.words.empty() || pair.words.back() != w) pair.words.push_back(static_cast<uint32_t>(w));
      changed_.push_back(key);
    }
  }

  void uncount_pairs(const Word& word) {
    for (size_t i = 0; i + 1 < word.symbols.size(); ++i)
      pairs_[pair_key(word.symbols[i], word.symbols[i + 1])].count -= word.count;
  }

  bool merge_next(int64_t min_count) {
    while (!heap_.empty()) {
      const Candidate top = heap_.top();
      heap_.pop();
      const auto found = pairs_.find(top.key);
      const int64_t count = found == pairs_.end() ? 0 : found->second.count;
      if (count < min_count) continue;
      if (count != top.count) {  // fell since it was put here; it waits again with what it has now
        if (count < top.count) heap_.push({count, top.key});
        continue;
      }
      merge(top.key);
      return true;
    }
    return false;
  }

  void merge(uint64_t key) {
    const auto left = static_cast<int32_t>(key >> 32), right = static_cast<int32_t>(key & 0xFFFFFFFFu);
    const auto merged = static_cast<int32_t>(tokens_.size());
    tokens_.push_back(tokens_[static_cast<size_t>(left)] + tokens_[static_cast<size_t>(right)]);
    merges_.emplace_back(left, right);
    std::vector<uint32_t> where = std::move(pairs_[key].words);
    std::sort(where.begin(), where.end());
    where.erase(std::unique(where.begin(), where.end()), where.end());
    changed_.clear();
    for (const uint32_t w : where) replace_in(w, left, right, merged);
    pairs_.erase(key);
    std::sort(changed_.begin(), changed_.end());
    changed_.erase(std::unique(changed_.begin(), changed_.end()), changed_.end());
    for (const uint64_t next : changed_)
      if (const auto found = pairs_.find(next); found != pairs_.end())
        heap_.push({found->second.count, next});
  }

  void replace_in(size_t w, int32_t left, int32_t right, int32_t merged) {
    std::vector<int32_t>& symbols = words_[w].symbols;
    size_t first = 0;
    while (first + 1 < symbols.size() && !(symbols[first] == left && symbols[first + 1] == right)) ++first;
    if (first + 1 >= symbols.size()) return;
    uncount_pairs(words_[w]);
    size_t kept = first;
    for (size_t i = first; i < symbols.size(); ++kept) {
      const bool both = i + 1 < symbols.size() && symbols[i] == left && symbols[i + 1] == right;
      symbols[kept] = both ? merged : symbols[i];
      i += both ? 2 : 1;
    }
    symbols.resize(kept);
    count_pairs(w);
  }

  std::vector<std::string> tokens_;
  std::vector<std::pair<int32_t, int32_t>> merges_;
  std::vector<Word> words_;
  std::unordered_map<uint64_t, Pair> pairs_;
  std::vector<uint64_t> changed_;  // pairs whose count may have grown
  std::priority_queue<Candidate> heap_;
};

json byte_level(bool use_regex) {
  return {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", use_regex}};
}

json pre_tokenizer_json(const std::string& pattern) {
  if (pattern.empty()) return byte_level(true);
  const json split = {
      {"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}};
  return {{"type", "Sequence"}, {"pretokenizers", json::array({split, byte_level(false)})}};
}

std::unordered_map<std::string, int64_t> count_pieces(const std::function<bool(std::string&)>& next,
                                                      const json& pre_tokenizer) {
  const PreTokenizer cut(JsonPlace(pre_tokenizer, "the pattern to train with"));
  std::unordered_map<std::string, int64_t> pieces;
  std::string text;
  while (next(text))
    for (std::string& piece : cut.pieces({is_utf8(text) ? text : to_utf8(text)})) ++pieces[std::move(piece)];
  require(!pieces.empty(), "there is no text to train a tokenizer with");
  return pieces;
}

json model_json(const Trainer& trained) {
  json vocab = json::object(), merges = json::array();
  const auto& tokens = trained.tokens();
  for (size_t id = 0; id < tokens.size(); ++id) vocab[bytes_to_letters(tokens[id])] = id;
  for (const auto& [left, right] : trained.merges())
    merges.push_back({bytes_to_letters(tokens[static_cast<size_t>(left)]),
                      bytes_to_letters(tokens[static_cast<size_t>(right)])});
  return {{"type", "BPE"},
          {"dropout", nullptr},
          {"unk_token", nullptr},
          {"continuing_subword_prefix", nullptr},
          {"end_of_word_suffix", nullptr},
          {"fuse_unk", false},
          {"byte_fallback", false},
          {"ignore_merges", false},
          {"vocab", vocab},
          {"merges", merges}};
}

json added_json(const std::vector<std::string>& names, size_t first_id) {
  json list = json::array();
  for (const auto& name : names)
    list.push_back({{"id", first_id++},
                    {"content", name},
                    {"single_word", false},
                    {"lstrip", false},
                    {"rstrip", false},
                    {"normalized", false},
                    {"special", true}});
  return list;
}

void check_training(const BpeTraining& options) {
  const auto least = static_cast<int64_t>(256 + options.special_tokens.size());
  require(options.vocab_size >= least && options.vocab_size < (1 << 24),
          "vocab_size: found {}, expected at least {} (256 bytes and {} special tokens) and below {}",
          options.vocab_size, least, options.special_tokens.size(), 1 << 24);
  std::set<std::string> names;
  for (const auto& name : options.special_tokens) {
    require(!name.empty() && is_utf8(name), "special_tokens: '{}' must be UTF-8 text that is not empty",
            name);
    require(names.insert(name).second, "special_tokens: '{}' is given twice", name);
  }
}

}  // namespace

std::string train_bpe(const std::function<bool(std::string&)>& next, const BpeTraining& options) {
  check_training(options);
  const json pre_tokenizer = pre_tokenizer_json(options.pattern);
  Trainer trainer(count_pieces(next, pre_tokenizer));
  const auto special = static_cast<int64_t>(options.special_tokens.size());
  trainer.run(options.vocab_size - 256 - special, std::max<int64_t>(options.min_count, 1), options.progress);
  const json whole = {{"version", "1.0"},
                      {"truncation", nullptr},
                      {"padding", nullptr},
                      {"added_tokens", added_json(options.special_tokens, trainer.tokens().size())},
                      {"normalizer", nullptr},
                      {"pre_tokenizer", pre_tokenizer},
                      {"post_processor", nullptr},
                      {"decoder", byte_level(true)},
                      {"model", model_json(trainer)}};
  return whole.dump(1) + "\n";
}

std::string train_bpe(const std::vector<std::string>& texts, const BpeTraining& options) {
  size_t at = 0;
  const auto next = [&](std::string& text) {
    if (at == texts.size()) return false;
    text = texts[at++];
    return true;
  };
  return train_bpe(next, options);
}

}  // namespace weft
