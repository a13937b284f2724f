#include "infer/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <unordered_set>

#include "base/error.h"

namespace weft {
namespace {

struct Scored {
  int64_t id;
  float logit;
};

bool better(const Scored& a, const Scored& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

// Tokens that are not ruled out, with their logits.
std::vector<Scored> finite_tokens(std::span<const float> logits) {
  std::vector<Scored> tokens;
  tokens.reserve(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    require(!std::isnan(logits[i]),
            "the model's logit of token {} is not a number: its weights or its precision are at fault", i);
    if (logits[i] != -std::numeric_limits<float>::infinity())
      tokens.push_back({static_cast<int64_t>(i), logits[i]});
  }
  require(!tokens.empty(), "every token is ruled out, nothing can be chosen");
  return tokens;
}

// exp((logit - largest) / temperature); +inf logits share everything.
std::vector<Choice> weigh(const std::vector<Scored>& sorted, double temperature) {
  std::vector<Choice> choices;
  choices.reserve(sorted.size());
  const double largest = sorted.front().logit;
  for (const auto& token : sorted) {
    const double below = token.logit == sorted.front().logit ? 0.0 : token.logit - largest;
    choices.push_back({token.id, std::exp(below / temperature)});
  }
  return choices;
}

double total(const std::vector<Choice>& choices) {
  double sum = 0;
  for (const auto& choice : choices) sum += choice.probability;
  return sum;
}

void keep_top_p(std::vector<Choice>& choices, double top_p) {
  const double wanted = top_p * total(choices);
  double sum = 0;
  size_t kept = 0;
  while (kept < choices.size() && (kept == 0 || sum < wanted)) sum += choices[kept++].probability;
  choices.resize(kept);
}

void keep_min_p(std::vector<Choice>& choices, double min_p) {
  const double bound = min_p * choices.front().probability;
  while (choices.size() > 1 && choices.back().probability < bound) choices.pop_back();
}

}  // namespace

void SamplingOptions::check() const {
  require(temperature >= 0 && std::isfinite(temperature), "temperature {}: must be at least 0 (0 is greedy)",
          temperature);
  require(top_k >= 0, "top-k {}: must be at least 0 (0 keeps all tokens)", top_k);
  require(top_p > 0 && top_p <= 1, "top-p {}: must be above 0 and at most 1", top_p);
  require(min_p >= 0 && min_p <= 1, "min-p {}: must be between 0 and 1", min_p);
  require(repetition_penalty > 0 && std::isfinite(repetition_penalty),
          "repetition penalty {}: must be above 0 (1 is none)", repetition_penalty);
}

void penalize_repetition(std::span<float> logits, std::span<const int64_t> seen, double penalty) {
  if (penalty == 1.0) return;
  std::unordered_set<int64_t> done;
  for (const int64_t id : seen) {
    if (id < 0 || id >= static_cast<int64_t>(logits.size()) || !done.insert(id).second) continue;
    float& logit = logits[static_cast<size_t>(id)];
    logit = static_cast<float>(logit > 0 ? logit / penalty : logit * penalty);
  }
}

int64_t most_likely(std::span<const float> logits) {
  const auto tokens = finite_tokens(logits);
  return std::min_element(tokens.begin(), tokens.end(), better)->id;
}

std::vector<Choice> sampling_choices(std::span<const float> logits, const SamplingOptions& options) {
  auto tokens = finite_tokens(logits);
  if (options.top_k > 0 && options.top_k < static_cast<int64_t>(tokens.size())) {
    std::nth_element(tokens.begin(), tokens.begin() + (options.top_k - 1), tokens.end(), better);
    tokens.resize(static_cast<size_t>(options.top_k));
  }
  std::sort(tokens.begin(), tokens.end(), better);
  auto choices = weigh(tokens, options.temperature);
  if (options.top_p < 1) keep_top_p(choices, options.top_p);
  if (options.min_p > 0) keep_min_p(choices, options.min_p);
  const double sum = total(choices);
  for (auto& choice : choices) choice.probability /= sum;
  return choices;
}

int64_t pick(const std::vector<Choice>& choices, double uniform) {
  double sum = 0;
  for (const auto& choice : choices) {
    sum += choice.probability;
    if (uniform < sum) return choice.id;
  }
  return choices.back().id;  // the sum fell short of 1 by rounding
}

Sampler::Sampler(const SamplingOptions& options) : options_(options), random_(options.seed) {
  options.check();
}

int64_t Sampler::next(std::span<float> logits, std::span<const int64_t> seen) {
  penalize_repetition(logits, seen, options_.repetition_penalty);
  if (options_.temperature == 0) return most_likely(logits);
  const double uniform =
      static_cast<double>(random_() >> 11) * 0x1.0p-53;  // the library's distributions differ by vendor
  return pick(sampling_choices(logits, options_), uniform);
}

}  // namespace weft
