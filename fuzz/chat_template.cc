// Chat templates come with models by strangers: whatever the text, rendering ends with a text or an InputError, in bounded
// time and memory.
#include <cstddef>
#include <cstdint>

#include "io/chat_template/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto variables = nlohmann::ordered_json::parse(R"({
    "messages": [{"role": "system", "content": " S "}, {"role": "user", "content": "hi <é>"},
                 {"role": "assistant", "content": "<think>a</think>b", "tool_calls": [{"id": "call00001",
                  "function": {"name": "f", "arguments": {"x": [1, 2.5, null]}}}]},
                 {"role": "tool", "content": "{}", "tool_call_id": "call00001"}],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}],
    "documents": [{"title": "t", "text": "x"}], "add_generation_prompt": true, "bos_token": "<s>", "eos_token": "</s>",
    "d": {"a": 1, "b": [1, 2, {"c": 3}]}})");
  const weft::jinja::Limits limits{.steps = 50'000, .bytes = 4 << 20, .depth = 300};
  try {
    const weft::ChatTemplate chat(std::string_view(reinterpret_cast<const char*>(data), size), "fuzz");
    chat.render(variables, limits);
  } catch (const weft::InputError&) {
  }
  return 0;
}
