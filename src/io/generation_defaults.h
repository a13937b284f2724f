// How a model folder wants its texts generated.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace weft {

// What is absent is left to the caller.
struct GenerationDefaults {
  std::vector<int64_t> end_ids;  // any of them ends a text
  std::optional<double> temperature, top_p, min_p, repetition_penalty;
  std::optional<int64_t> top_k;
};

// Reads generation_config.json of a Hugging Face folder (eos_token_id: one or a list; do_sample false is temperature 0),
// and eos_token_id of config.json where that has none. InputError names file and key for values of a wrong type.
GenerationDefaults read_generation_defaults(const std::string& folder);

}  // namespace weft
