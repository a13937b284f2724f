// A conversation with a model whose state is kept between turns, so that what was said before is not read again.
#pragma once

#include <deque>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "infer/decoder.h"
#include "infer/generate.h"
#include "io/chat_template/chat_prompt.h"

namespace weft {

struct ChatOptions {
  SamplingOptions sampling;   // each turn draws by a seed of its own, made from `seed` and the turn's number
  int64_t max_tokens = 1024;  // of one answer
  std::vector<std::string> stop;  // an answer ends before the first of these; the prompt's own are added
  std::vector<int64_t> end_ids;   // end an answer, beside the tokenizer's end-of-text token
  int64_t prefill_chunk = 512;    // tokens of the prompt in one call
  std::string system;             // what the system message says; "": none
  nlohmann::ordered_json variables = nlohmann::ordered_json::object();  // more for the template
  std::function<bool()> cancelled;  // asked before every chunk and token; true ends the answer
};

struct ChatReply {
  std::string text;          // valid UTF-8, without special tokens and the stop string
  std::vector<int64_t> ids;  // drawn
  StopReason reason = StopReason::max_tokens;
  int64_t read = 0;    // tokens of the prompt that were run
  int64_t reused = 0;  // tokens of the prompt that the state had seen already
  double first_token_s = 0, decode_s = 0;
  int64_t state_bytes = 0;
  double tokens_per_second() const;  // of tokens after the first; 0 when there is none
};

class Chat {
 public:
  // Keeps references to the model and the tokenizer. InputError for a tokenizer that does not fit the model.
  Chat(Model& model, const Tokenizer& tokenizer, ChatPrompt prompt, ChatOptions options);

  // One turn: adds the user's message, lets the model answer piece by piece to `on_text`, adds the answer. An answer
  // that is cancelled while the prompt is read leaves the conversation as it was; one that is cancelled later is kept as
  // far as it went. When the template refuses (InputError), the conversation is as before.
  // The prompt of the turn is compared with the tokens that the state has seen. What they share is not read again: when
  // the template rewrote what was said, the state goes back to the last snapshot before that place, or begins anew.
  ChatReply say(const std::string& text, const std::function<void(std::string_view)>& on_text = {});

  // Messages so far, the system message first: objects with "role" and "content".
  nlohmann::ordered_json messages() const;
  void
  reset();  // forgets all messages but the system's; the state is kept where the next prompt begins alike
  void set_system(const std::string& text) { options_.system = text; }
  int64_t seen_tokens() const { return static_cast<int64_t>(seen_.size()); }

  // Writes a folder with conversation.json and state.safetensors, complete or not at all; replaces one that was there.
  // InputError when something else has the name.
  void save(const std::string& folder);
  // Goes on with a saved conversation. InputError when the folder is none or damaged, and for another model or type of
  // numbers than it was saved with; the conversation is then as before.
  void load(const std::string& folder);

 private:
  struct Snapshot {
    size_t tokens;
    ModelState state;
  };
  std::vector<int64_t> prompt_ids(const nlohmann::ordered_json& messages, bool for_answer) const;
  size_t rewind(const std::vector<int64_t>& prompt);
  bool read_prompt(const std::vector<int64_t>& prompt, size_t stable, ChatReply& reply,
                   std::span<float>& logits);
  void answer(std::vector<int64_t> history, std::span<float> logits, ChatReply& reply,
              const std::function<void(std::string_view)>& on_text);
  void keep_snapshot();
  bool cancelled() const { return options_.cancelled && options_.cancelled(); }
  bool ends(int64_t id) const;

  Model& model_;
  const Tokenizer& tokenizer_;
  ChatPrompt prompt_;
  ChatOptions options_;
  Decoder decoder_;
  nlohmann::ordered_json messages_ = nlohmann::ordered_json::array();  // without the system message
  std::vector<int64_t> seen_;                                          // what the state has read
  std::deque<Snapshot> snapshots_;                                     // by rising number of tokens
  int64_t turns_ = 0;
};

// Tells models apart: their description, the names and shapes of their parameters and the first numbers of each, the
// tokenizer, and the type that activations have.
std::string chat_fingerprint(Model& model, const Tokenizer& tokenizer);

}  // namespace weft
