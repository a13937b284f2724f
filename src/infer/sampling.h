// The choice of the next token from logits. Pure functions on one row of logits, and a sampler that owns the
// random numbers. Order: repetition penalty, temperature, top-k, top-p, min-p; then what is left is
// normalised and drawn from.
#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <vector>

namespace weft {

struct SamplingOptions {
  double temperature = 1.0;  // divides the logits; 0 is greedy: the largest logit, no random number used
  int64_t top_k = 0;         // keep the k most likely tokens; 0 keeps all
  double top_p = 1.0;        // keep the fewest most likely tokens whose probabilities sum to at least p
  double min_p = 0.0;        // drop tokens less likely than min_p times the most likely one
  double repetition_penalty = 1.0;  // above 1 makes tokens that occurred before less likely
  uint64_t seed = 1;
  // InputError for values outside their limits.
  void check() const;
};

// One token that may come next.
struct Choice {
  int64_t id;
  double probability;
};

// Keskar et al. 2019, "CTRL", arXiv:1909.05858, as it is used today: the logit of every id in `seen` (once,
// however often it occurs) is divided by `penalty` when positive and multiplied by it when negative.
void penalize_repetition(std::span<float> logits, std::span<const int64_t> seen, double penalty);

// The id of the largest logit, the smaller id among equals. -inf rules a token out; InputError when a logit
// is NaN or nothing is left.
int64_t most_likely(std::span<const float> logits);

// What temperature (above 0), top-k, top-p and min-p leave, by falling probability and then rising id;
// probabilities sum to 1. Never empty: the most likely token always stays. Errors as most_likely().
std::vector<Choice> sampling_choices(std::span<const float> logits, const SamplingOptions& options);

// The choice that a number in [0, 1) falls on when the choices are laid out in their order.
int64_t pick(const std::vector<Choice>& choices, double uniform);

// Draws one token after another. Equal options, logits and history give equal tokens on every machine.
class Sampler {
 public:
  explicit Sampler(const SamplingOptions& options);
  // `logits` of one position are changed in place; `seen` are prompt and output so far.
  int64_t next(std::span<float> logits, std::span<const int64_t> seen);

 private:
  SamplingOptions options_;
  std::mt19937_64 random_;
};

}  // namespace weft
