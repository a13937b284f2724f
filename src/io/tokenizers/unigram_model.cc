#include "io/tokenizers/unigram_model.h"

#include <cmath>

#include "base/error.h"

namespace weft {

namespace {

constexpr double kUnknownPenalty = 10;

}  // namespace

UnigramModel::UnigramModel(const JsonPlace& place) : where_(place.where()) {
  place.only({"type", "unk_id", "vocab", "byte_fallback"});
  byte_fallback_ = place.boolean_or("byte_fallback", false);
  double worst = INFINITY;
  for (const auto& item : place.at("vocab").items()) {
    const auto pair = item.items();
    require(pair.size() == 2 && pair[0].json().is_string() && pair[1].json().is_number(),
            "{}: expected [token, score], found {}", item.where(), item.shown());
    const auto score = pair[1].json().get<double>();
    require(std::isfinite(score), "{}: the score of '{}' is not a finite number", item.where(),
            pair[0].text());
    vocabulary_.add(pair[0].text(), static_cast<int64_t>(scores_.size()), item.where());
    trie_.insert(pair[0].text(), scores_.size());
    scores_.push_back(score);
    worst = std::min(worst, score);
  }
  require(!scores_.empty(), "{}: is empty", place.at("vocab").where());
  unknown_score_ = worst - kUnknownPenalty;
  if (!place.has("unk_id")) return;
  unknown_ = place.at("unk_id").integer();
  require(vocabulary_.has(unknown_), "{}: the id {} is not in the vocabulary of {} tokens",
          place.at("unk_id").where(), unknown_, scores_.size());
}

void UnigramModel::encode(const std::string& piece, std::vector<int64_t>& ids) const {
  const auto steps = BestPath<double>().run(piece, unknown_score_, [&](size_t at, auto offer) {
    trie_.for_each_prefix(
        piece, at, [&](size_t id, size_t length) { offer(static_cast<int64_t>(id), length, scores_[id]); });
  });
  std::string unknown;  // neighbours without a token are one
  for (const auto& step : steps) {
    const std::string surface = piece.substr(step.begin, step.end - step.begin);
    if (step.id < 0 || step.id == unknown_) {
      require(unknown_ >= 0, "{}: '{}' has no token, and there is no unk_id", where_, surface);
      unknown += surface;
      continue;
    }
    append(unknown, ids);
    unknown.clear();
    append(surface, ids);
  }
  append(unknown, ids);
}

void UnigramModel::append(const std::string& surface, std::vector<int64_t>& ids) const {
  if (surface.empty()) return;
  if (const int64_t id = vocabulary_.find(surface); id >= 0) return ids.push_back(id);
  std::vector<int64_t> bytes;
  for (const char c : surface)
    bytes.push_back(
        byte_fallback_ ? vocabulary_.find(fmt::format("<0x{:02X}>", static_cast<unsigned char>(c))) : -1);
  if (std::find(bytes.begin(), bytes.end(), -1) == bytes.end())
    ids.insert(ids.end(), bytes.begin(), bytes.end());
  else
    ids.push_back(unknown_);
}

uint64_t UnigramModel::hash(uint64_t seed) const {
  seed = stable_hash(vocabulary_, seed);
  for (const double score : scores_) seed = stable_hash(fmt::format("{:a}\n", score), seed);
  return stable_hash(fmt::format("{} {}", unknown_, byte_fallback_), seed);
}

}  // namespace weft
