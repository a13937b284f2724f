// A language model over pieces. Kudo 2018, "Subword Regularization", arXiv:1804.10959.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/tokenizers/token_model.h"
#include "io/tokenizers/trie.h"

namespace weft {

// Cuts a piece into the tokens with the largest sum of scores (log probabilities), of equal ones the first
// found. A character without a token of its own may be the unknown token, which scores 10 less than the worst
// one; several in a row are one token, or with byte_fallback the bytes of all.
class UnigramModel final : public TokenModel {
 public:
  explicit UnigramModel(const JsonPlace& place);

  void encode(const std::string& piece, std::vector<int64_t>& ids) const override;
  const Vocabulary& vocabulary() const override { return vocabulary_; }
  uint64_t hash(uint64_t seed) const override;

 private:
  void append(const std::string& surface, std::vector<int64_t>& ids) const;
  std::string where_;
  Vocabulary vocabulary_;
  Trie trie_;
  std::vector<double> scores_;  // by id
  double unknown_score_ = 0;
  int64_t unknown_ = -1;
  bool byte_fallback_ = false;
};

// The best way through a text of tokens with scores, the search of Unigram. `find(at, offer)` calls
// offer(id, length, score) for every token at `at`, the shortest first. Sums are compared in double and kept as
// Number.
template <class Number>
class BestPath {
 public:
  struct Step {
    int64_t id = -1;
    size_t begin = SIZE_MAX, end = 0;
  };

  // `unknown_score` is for characters of text that no token covers alone; id -1 stands for them.
  template <class Find>
  std::vector<Step> run(std::string_view text, Number unknown_score, Find find);

 private:
  struct Node {
    Number score = 0;
    size_t begin = SIZE_MAX;  // SIZE_MAX: not reached
    int64_t id = -1;
  };
};

}  // namespace weft

#include <algorithm>

#include "io/tokenizers/utf8.h"

namespace weft {

template <class Number>
template <class Find>
std::vector<typename BestPath<Number>::Step> BestPath<Number>::run(std::string_view text,
                                                                   Number unknown_score, Find find) {
  std::vector<Node> nodes(text.size() + 1);
  nodes[0].begin = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t one = utf8_step(text, at).bytes;
    const Number so_far = nodes[at].score;
    bool covered = false;
    const auto offer = [&](int64_t id, size_t length, double score) {
      Node& node = nodes[at + length];
      const double candidate = score + so_far;
      if (node.begin == SIZE_MAX || candidate > node.score) node = {static_cast<Number>(candidate), at, id};
      covered = covered || length == one;
    };
    find(at, offer);
    if (!covered) offer(-1, one, unknown_score);
    at += one;
  }
  std::vector<Step> steps;
  for (size_t end = text.size(); end > 0; end = nodes[end].begin)
    steps.push_back({nodes[end].id, nodes[end].begin, end});
  std::reverse(steps.begin(), steps.end());
  return steps;
}

}  // namespace weft
