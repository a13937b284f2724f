// From messages to the prompt of a model: its chat template with its special tokens, or a plain form for models without.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "io/chat_template/chat_files.h"
#include "io/chat_template/chat_template.h"

namespace weft {

// InputError for a template that is none.
class ChatPrompt {
 public:
  // `name`: of the template; "" takes "default", or the only one. Without any template the plain form.
  explicit ChatPrompt(const ChatFiles& files, const std::string& name = "");

  // The text of a conversation; with `add_generation_prompt` up to where the assistant's answer begins. `variables`:
  // more for the template ("tools", "enable_thinking"...). With tools the template "tool_use" is taken, if there is one.
  std::string render(const nlohmann::ordered_json& messages, bool add_generation_prompt,
                     const nlohmann::ordered_json& variables = nlohmann::ordered_json::object()) const;
  bool plain() const { return templates_.empty(); }
  // Texts that end an answer in the plain form; none with a template, whose turns end with a token.
  std::vector<std::string> stop() const;

 private:
  std::map<std::string, ChatTemplate> templates_;
  std::string chosen_;
  bool named_ = false;  // by the caller
  std::map<std::string, std::string> special_tokens_;
};

}  // namespace weft
