// Chat templates: how the messages of a conversation become the one text that a model was trained on. The language is
// Jinja as transformers runs it: an immutable sandbox, trim_blocks and lstrip_blocks, break and continue, `generation`
// blocks, tojson without HTML escapes, raise_exception and strftime_now. Whole numbers have 64 bits. Not in it: the
// statements for several files (include, import, extends) and autoescape; the filters random, pprint, urlize, xmlattr.
#pragma once

#include <ctime>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "io/chat_template/budget.h"

namespace weft {

// Immutable, and safe to use from several threads at once.
class ChatTemplate {
 public:
  // `name` stands for the template in messages: a file, or a file and a field. InputError with the line for text that is
  // no template.
  ChatTemplate(std::string_view source, std::string name);
  ~ChatTemplate();
  ChatTemplate(ChatTemplate&&) noexcept;

  // The text for these variables, an object: "messages" (with "role" and "content"...), "add_generation_prompt",
  // "tools", "bos_token"... InputError with the line for anything the template does wrong or raises itself, and when it
  // goes beyond `limits`.
  std::string render(const nlohmann::ordered_json& variables, const jinja::Limits& limits = {}) const;

  const std::string& name() const { return name_; }
  // What strftime_now takes for the present; std::time by default. For tests.
  void set_clock(std::function<std::time_t()> clock) { clock_ = std::move(clock); }

 private:
  struct Tree;
  std::unique_ptr<Tree> tree_;
  std::string name_;
  std::function<std::time_t()> clock_;
};

// Messages as transformers hands them to a template: keys that are null are left out, and reasoning has all the names
// that templates know it by (reasoning_content, thinking, reasoning). InputError unless it is a list of objects.
nlohmann::ordered_json normalized_messages(const nlohmann::ordered_json& messages);

}  // namespace weft
