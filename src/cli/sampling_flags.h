// The flags that say how tokens are drawn. What is not given is as the model's folder wants it, else weft's default.
#pragma once

#include "cli/command.h"
#include "infer/sampling.h"
#include "io/generation_defaults.h"

namespace weft::cli {

struct SamplingFlags {
  std::optional<double> temperature, top_p, min_p, repetition_penalty;
  std::optional<int64_t> top_k;
  int64_t seed = 1;

  void flags(Flags& f) {
    f("--temperature,-t", temperature, "0 is greedy [the model's, else 0.8]");
    f("--top-k", top_k, "draw from the k most likely tokens; 0: from all [the model's, else 0]");
    f("--top-p", top_p,
      "draw from the most likely tokens that together have this probability [the model's, else 1]");
    f("--min-p", min_p,
      "leave out tokens less likely than this share of the most likely one [the model's, else 0]");
    f("--repetition-penalty", repetition_penalty,
      "above 1 makes tokens that occurred before less likely [the model's, else 1]");
    f("--seed", seed, "equal seeds give equal texts");
  }

  SamplingOptions options(const GenerationDefaults& defaults) const {
    const auto chosen = [](const auto& given, const auto& model, auto otherwise) {
      return given ? *given : model.value_or(otherwise);
    };
    return {.temperature = chosen(temperature, defaults.temperature, 0.8),
            .top_k = chosen(top_k, defaults.top_k, int64_t{0}),
            .top_p = chosen(top_p, defaults.top_p, 1.0),
            .min_p = chosen(min_p, defaults.min_p, 0.0),
            .repetition_penalty = chosen(repetition_penalty, defaults.repetition_penalty, 1.0),
            .seed = static_cast<uint64_t>(seed)};
  }
};

}  // namespace weft::cli
