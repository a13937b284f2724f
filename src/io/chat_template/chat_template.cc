#include "io/chat_template/chat_template.h"

#include "io/chat_template/evaluator.h"
#include "io/chat_template/lexer.h"

namespace weft {

struct ChatTemplate::Tree {
  jinja::Body body;
};

namespace {

std::string formatted_time(const std::string& format, std::time_t now) {
  if (format.empty()) return "";
  std::tm parts = {};
  localtime_r(&now, &parts);
  char text[1024];
  // The mark at the end tells an empty result from one that does not fit.
  const size_t size = std::strftime(text, sizeof text, (format + "|").c_str(), &parts);
  if (size == 0)
    jinja::fail("strftime_now: the text for this format is longer than {} bytes", sizeof text - 2);
  return std::string(text, size - 1);
}

}  // namespace

ChatTemplate::ChatTemplate(std::string_view source, std::string name)
    : tree_(std::make_unique<Tree>()), name_(std::move(name)) {
  try {
    tree_->body = jinja::parse(source);
  } catch (const InputError& error) {
    throw InputError(fmt::format("{}: {}", name_, error.what()));
  }
}

ChatTemplate::~ChatTemplate() = default;
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;

std::string ChatTemplate::render(const nlohmann::ordered_json& variables, const jinja::Limits& limits) const {
  const std::time_t now = clock_ ? clock_() : std::time(nullptr);
  jinja::Evaluator evaluator(limits,
                             [now](const std::string& format) { return formatted_time(format, now); });
  try {
    return evaluator.render(tree_->body, variables);
  } catch (const jinja::TemplateError& error) {
    throw InputError(fmt::format("{}: line {}: {}", name_, evaluator.line(), error.what()));
  }
}

nlohmann::ordered_json normalized_messages(const nlohmann::ordered_json& messages) {
  require(messages.is_array(), "messages: expected a list, got {}", messages.type_name());
  auto out = nlohmann::ordered_json::array();
  for (const auto& message : messages) {
    require(message.is_object(), "messages: expected objects, got {}", message.type_name());
    nlohmann::ordered_json kept = nlohmann::ordered_json::object();
    std::optional<nlohmann::ordered_json> reasoning;
    for (const char* name : {"reasoning_content", "thinking", "reasoning"})
      if (!reasoning && message.contains(name) && !message[name].is_null()) reasoning = message[name];
    if (reasoning) kept["thinking"] = *reasoning;
    for (const auto& [key, value] : message.items())
      if (!value.is_null()) kept[key] = value;
    if (reasoning) kept["reasoning_content"] = *reasoning;
    out.push_back(std::move(kept));
  }
  return out;
}

}  // namespace weft
