#include "io/chat_template/chat_prompt.h"

#include "base/error.h"
#include "base/text.h"

namespace weft {
ChatPrompt::ChatPrompt(const ChatFiles& files, const std::string& name)
    : named_(!name.empty()), special_tokens_(files.special_tokens) {
  std::vector<std::string> names;
  for (const auto& [known, text] : files.templates) names.push_back(known);
  chosen_ = named_ ? name : names.size() == 1 ? names[0] : "default";
  require(!named_ || files.templates.count(name), "chat template '{}': the model has {}", name,
          names.empty() ? "none" : join(names));
  require(names.empty() || files.templates.count(chosen_),
          "{}: no chat template is the default one: name one of {}", files.source, join(names));
  for (const auto& [known, text] : files.templates)
    if (known == chosen_ || (!named_ && known == "tool_use"))
      templates_.emplace(
          known, ChatTemplate(text, known == "default" ? files.source : files.source + " '" + known + "'"));
}

std::string ChatPrompt::render(const nlohmann::ordered_json& messages, bool add_generation_prompt,
                               const nlohmann::ordered_json& variables) const {
  auto all = nlohmann::ordered_json::object();
  for (const auto& [name, token] : special_tokens_) all[name] = token;
  all["messages"] = normalized_messages(messages);
  all["tools"] = all["documents"] = nullptr;
  all["add_generation_prompt"] = add_generation_prompt;
  for (const auto& [name, value] : variables.items()) all[name] = value;
  if (!plain()) {
    const bool tools = !named_ && !all["tools"].is_null() && templates_.count("tool_use");
    return templates_.at(tools ? "tool_use" : chosen_).render(all);
  }
  std::string text;
  for (const auto& message : all["messages"]) {
    const auto role = message.value("role", std::string("user")),
               content = message.value("content", std::string());
    if (role == "system")
      text += content + "\n\n";
    else
      text += (role == "assistant" ? "Assistant: " : "User: ") + content + "\n";
  }
  return add_generation_prompt ? text + "Assistant:" : text;
}

std::vector<std::string> ChatPrompt::stop() const {
  return plain() ? std::vector<std::string>{"\nUser:"} : std::vector<std::string>{};
}

}  // namespace weft
