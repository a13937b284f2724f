// The chat templates that a model folder comes with.
#pragma once

#include <map>
#include <string>

namespace weft {

// What a model folder says about conversations.
struct ChatFiles {
  std::map<std::string, std::string> templates;       // by name: "default", "tool_use", ...
  std::map<std::string, std::string> special_tokens;  // "bos_token" -> "<s>", ...
  std::string source;                                 // the file that the templates stand in, for messages
};

// Reads tokenizer_config.json (chat_template: one text, or a list of named ones), chat_template.jinja, which comes
// before it, chat_template.json, additional_chat_templates/*.jinja and special_tokens_map.json of a folder; what is not
// there is empty. InputError for broken files.
ChatFiles read_chat_files(const std::string& folder);

}  // namespace weft
