// Text from a model: the prompt goes in by chunks, then one token after another in the step form.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "infer/sampling.h"
#include "io/tokenizers/tokenizer.h"
#include "nn/model.h"

namespace weft {

struct GenerateOptions {
  SamplingOptions sampling;
  int64_t max_tokens = 256;       // of output
  std::vector<std::string> stop;  // the output ends before the first of these; they may span tokens
  bool stop_at_end_of_text = true;
  std::vector<int64_t> end_ids;  // end a text too, beside the tokenizer's end-of-text token
  int64_t prefill_chunk = 512;   // prompt tokens in one call; bounds the memory of prefill
  // Asked before every chunk and token; true ends the generation.
  std::function<bool()> cancelled;
};

enum class StopReason { max_tokens, end_of_text, stop_string, cancelled };
std::string_view stop_reason_name(StopReason reason);

struct Generation {
  std::string text;          // valid UTF-8, without the prompt and the stop string
  std::vector<int64_t> ids;  // drawn; also those of text that was cut off
  StopReason reason = StopReason::max_tokens;
  int64_t prompt_tokens = 0;
  double first_token_s = 0;  // from the start to the first token: prefill and one draw
  double decode_s = 0;       // from the first token to the last
  int64_t state_bytes = 0;   // of the state at the end
  // Of tokens after the first; 0 when there is none.
  double tokens_per_second() const;
};

// Continues `prompt`. `on_text` gets the output piece by piece, whole characters only, as soon as no stop
// string can begin in it. An empty prompt begins at the tokenizer's end-of-text token. Ids that the tokenizer
// has no text for are never drawn. InputError for a tokenizer that does not fit the model.
Generation generate(Model& model, const Tokenizer& tokenizer, std::string_view prompt,
                    const GenerateOptions& options,
                    const std::function<void(std::string_view)>& on_text = {});

// The same from ids to ids, for models without a tokenizer: there is no text, no stop string and no end of text, and
// `on_token` gets every id as it is drawn.
Generation generate_ids(Model& model, const std::vector<int64_t>& prompt, const GenerateOptions& options,
                        const std::function<void(int64_t)>& on_token = {});

// InputError unless the model has an embedding for every id of the tokenizer.
void require_fitting(const Model& model, const Tokenizer& tokenizer);

}  // namespace weft
