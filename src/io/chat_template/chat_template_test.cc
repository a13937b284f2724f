// Renderings as Jinja2 gives them (tests/data/chat_templates, made by tools/make_chat_template_cases.py), templates that
// mean harm, and the files of model folders.
#include "io/chat_template/chat_template.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <thread>

#include "base/files.h"
#include "base/scratch_folder.h"
#include "io/chat_template/chat_prompt.h"
#include "io/generation_defaults.h"
#include "io/tokenizers/tokenizer.h"

namespace weft {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kCases = "tests/data/chat_templates/";

std::string rendered(const std::string& source, const Json& variables = Json::object(),
                     const jinja::Limits& limits = {}) {
  ChatTemplate chat(source, "chat");
  chat.set_clock([] { return std::time_t{1700000000}; });
  return chat.render(variables, limits);
}

std::string error_of(const std::string& source, const Json& variables = Json::object()) {
  try {
    rendered(source, variables);
  } catch (const InputError& error) {
    return error.what();
  }
  return "";
}

void expect_cases(const std::string& file) {
  for (const auto& each : Json::parse(read_text(kCases + file))["cases"]) {
    const auto source = each["template"].get<std::string>(), name = each["name"].get<std::string>();
    if (each.contains("error")) {
      EXPECT_NE(error_of(source, each["variables"]), "") << name << "\nexpected " << each["error"];
    } else {
      EXPECT_EQ(rendered(source, each["variables"]), each["rendered"].get<std::string>()) << name;
    }
  }
}

TEST(ChatTemplate, RendersTheFamiliesOfTemplatesAsJinjaDoes) { expect_cases("families.json"); }
TEST(ChatTemplate, HasTheLanguageOfJinja) { expect_cases("language.json"); }

TEST(ChatTemplate, ErrorsNameTheLine) {
  const std::pair<const char*, const char*> cases[] = {
      {"a\n{% if x %}\n{{ 1 + }}{% endif %}", "chat: line 3: expected an expression, found '}}'"},
      {"\n{% if x %}",
       "chat: line 2: expected '{% elif %}' or '{% else %}' or '{% endif %}', found the end of the template"},
      {"a\n\n{{ messages[0].role }}", "chat: line 3: 'messages' is undefined"},
      {"{% for x in [1] %}\n{{ x.y.z }}\n{% endfor %}", "chat: line 2: 'int object' has no attribute 'y'"},
      {"{{ 1\n + 'a' }}", "chat: line 2: unsupported operand type(s) for +: 'int' and 'str'"},
      {"\n{{ raise_exception('roles must alternate') }}", "chat: line 2: roles must alternate"},
      {"{{ 'x' | uper }}", "chat: line 1: there is no filter 'uper'; did you mean 'upper'?"},
      {"{{ x is definde }}", "chat: line 1: there is no test 'definde'; did you mean 'defined'?"},
      {"{% include 'a' %}",
       "chat: line 1: 'include' is not for chat templates, which are one file of plain text"},
      {"\n{# never", "chat: line 2: this comment has no end: expected '#}'"},
      {"{% macro m(a) %}{% endmacro %}\n{{ m(1, 2) }}",
       "chat: line 2: macro 'm' takes not more than 1 argument(s)"},
      {"{{ 9223372036854775807 + 1 }}", "chat: line 1: a whole number leaves 64 bits"}};
  for (const auto& [source, message] : cases) EXPECT_EQ(error_of(source), message);
}

std::string many(const std::string& text, int count) {
  std::string out;
  for (int i = 0; i < count; ++i) out += text;
  return out;
}

// Whatever a template does, it ends with an error within seconds and with little memory.
TEST(ChatTemplate, BoundsWhatATemplateMayTake) {
  const std::string loops = many("{% for i in range(100000) %}", 3) + "x" + many("{% endfor %}", 3);
  const std::string sources[] = {
      loops,
      "{{ 'a' * 10**9 }}",
      "{{ [0] * 10**9 }}",
      "{{ 'a' | center(10**12) }}",
      "{{ '%1000000000d' % 1 }}",
      "{{ '{:1000000000}'.format(1) }}",
      "{{ '%.1000000000f' % 1.0 }}",
      "{{ '{0:{1}}'.format('x', 10**12) }}",
      "{{ 'x'.ljust(10**12) }}{{ 'x'.zfill(10**12) }}",
      "{{ '\t'.expandtabs(10**12) }}",
      "{{ range(10**9) }}",
      "{{ 2 ** 100000 }}",
      "{{ '[[]]' | tojson(indent=10**12) }}{{ [[1]] | tojson(indent=10**12) }}",
      "{{ [1] | batch(10**12, 0) | list }}",
      "{{ [1] | slice(10**12) | list }}",
      "{{ 'a b' | indent(10**12) }}{{ 'a\nb' | indent(10**12) }}",
      "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
      "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
      "{% macro m() %}{{ caller() }}{% endmacro %}{% macro r() %}{% call m() %}{{ r() }}{% endcall %}{% "
      "endmacro %}{{ r() }}",
      "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
      "{% set ns = namespace(x='a') %}{% for i in range(100) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
      "{% set ns = namespace(x=[]) %}{% for i in range(100) %}{% set ns.x = ns.x + ns.x + [1] %}{% endfor %}",
      "{% set ns = namespace(x=[]) %}{% for i in range(1000) %}{% set ns.x = [ns.x] %}{% endfor %}",
      "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ "
      "ns.x }}",
      "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ "
      "ns.x | tojson }}",
      "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ "
      "ns.x == [[ns.x]] + ns.x }}{{ ns.x | string }}",
      "{% set ns = namespace() %}{% set ns.me = ns %}{{ ns }}",
      "{% for i in range(100000) %}{{ 'x' * 100000 }}{% endfor %}",
      "{% set x = 'a' * 1000000 %}{% for i in range(100000) %}{% set y = x | replace('a', 'bb') %}{% endfor "
      "%}",
      "{{ ('a' * 100000).replace('', 'x' * 100000) }}",
      "{{ ('x' * 100000).join(range(100000) | map('string')) }}",
      "{{ range(100000) | join('x' * 100000) }}",
      "{{ strftime_now('%100000000d') }}",
      "{% set x = 'é' * 1000000 %}{% for i in range(100000) %}{% set y = x | length %}{% endfor %}",
      "{% set x = 'a' * 1000000 %}{% for i in range(1000) %}{% set y = ('a' * 500000 ~ 'b') in x %}{% endfor "
      "%}{{ y.z }}",
      "{% set x = 'a' * 1000000 %}{% for i in range(1000) %}{% set y = x.rfind('b' ~ 'a' * 500000) %}{% "
      "endfor %}{{ y.z.w }}",
      "{{ ('a' * 1000000).strip('b' * 1000000 ~ 'a') }}",
      "{{ 'a' * 3000000 | wordwrap(1) }}{{ ('a' * 3000000) | wordwrap(1) }}",
      "{{ ('<>' * 3000000) | striptags }}",
      "{{ ('a' * 30000000) | list | length }}",
      "{{ ('a,' * 30000000).split(',') | length }}",
      many("(", 100000),
      "{{ " + many("(", 100000),
      "{{ " + many("[", 100000) + many("]", 100000) + " }}",
      "{{ " + many("not ", 100000) + "x }}",
      "{{ " + many("-", 100000) + "1 }}",
      "{{ 1" + many(" + 1", 100000) + " }}",
      "{{ x" + many(".y", 100000) + " }}",
      "{{ x" + many(" | trim", 100000) + " }}",
      many("{% if x %}", 100000),
      many("{% for x in y %}", 10000) + many("{% endfor %}", 10000),
      "{{ 1" + many(" if 1 else 2", 100000) + " }}",
      "{% if 1 %}" + many("{% endfor %}", 3),
      "{% endif %}",
      "{{ }} {{",
      "{% raw %}",
      std::string("{{ '\0' | }}", 11)};
  for (const auto& source : sources) {
    const auto plain_text = source.find("{") == std::string::npos;
    if (plain_text) {
      EXPECT_EQ(rendered(source), source);
    } else {
      EXPECT_NE(error_of(source), "") << source.substr(0, 200);
    }
  }
}

TEST(ChatTemplate, LimitsAreThoseGiven) {
  const std::string loop = "{% for i in range(1000) %}x{% endfor %}";
  EXPECT_EQ(rendered(loop).size(), 1000u);
  EXPECT_THROW(rendered(loop, Json::object(), {.steps = 1000}), InputError);
  EXPECT_THROW(rendered("{{ 'a' * 2000 }}", Json::object(), {.bytes = 1500}), InputError);
  EXPECT_EQ(rendered("{{ 'a' * 20 }}", Json::object(), {.bytes = 15000}).size(), 20u);
  // Memory is that of values that exist at a time, not of all there were.
  EXPECT_EQ(rendered("{% for i in range(9000) %}{% set x = 'a' * 10000 %}{% endfor %}", Json::object(),
                     {.bytes = 1 << 20}),
            "");
}

TEST(ChatTemplate, ManyThreadsMayRenderOne) {
  const ChatTemplate chat("{% for m in messages %}{{ m.content ~ loop.index }}{% endfor %}", "chat");
  const auto variables = Json::parse(R"({"messages": [{"content": "a"}, {"content": "b"}]})");
  std::vector<std::thread> threads;
  std::atomic<int> right = 0;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&] {
      for (int n = 0; n < 200; ++n) right += chat.render(variables) == "a1b2";
    });
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(right, 800);
}

TEST(ChatPrompt, MessagesLoseNullsAndGetReasoningByAllNames) {
  const auto messages = Json::parse(
      R"([{"role": "assistant", "content": null, "thinking": "t"}, {"role": "user", "content": "x"}])");
  EXPECT_EQ(normalized_messages(messages).dump(),
            R"([{"thinking":"t","role":"assistant","reasoning_content":"t"},{"role":"user","content":"x"}])");
  EXPECT_THROW(normalized_messages(Json::parse("[1]")), InputError);
}

TEST(ChatPrompt, ReadsTheTemplatesOfAFolder) {
  const ScratchFolder folder;
  const auto write = [&](const char* name, const std::string& text) {
    write_atomically(folder.file(name), text);
  };
  const auto messages = Json::parse(R"([{"role": "user", "content": "hi"}])");
  EXPECT_TRUE(ChatPrompt(read_chat_files(folder.path())).plain());
  EXPECT_EQ(ChatPrompt(read_chat_files(folder.path())).render(messages, true), "User: hi\nAssistant:");
  write(
      "tokenizer_config.json",
      R"({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": null, "add_bos_token": true, "chat_template": [
            {"name": "default", "template": "{{ bos_token }}d{{ messages[0].content }}"},
            {"name": "tool_use", "template": "t{{ tools | length }}{{ pad_token }}"},
            {"name": "rag", "template": "r{{ eos_token }}"}]})");
  const auto files = read_chat_files(folder.path());
  const ChatPrompt prompt(files);
  EXPECT_EQ(prompt.render(messages, true), "<s>dhi");
  EXPECT_EQ(prompt.render(messages, true, {{"tools", Json::array({1, 2})}}), "t2");
  EXPECT_EQ(ChatPrompt(files, "rag").render(messages, true), "r</s>");
  EXPECT_THROW(ChatPrompt(files, "none"), InputError);
  write("chat_template.jinja", "file {{ messages[0].role }}");
  EXPECT_EQ(ChatPrompt(read_chat_files(folder.path())).render(messages, false), "file user");
  write("tokenizer_config.json", R"({"chat_template": 3})");
  EXPECT_THROW(read_chat_files(folder.path()), InputError);
}

TEST(GenerationDefaults, AreReadFromTheFolder) {
  const ScratchFolder folder;
  EXPECT_TRUE(read_generation_defaults(folder.path()).end_ids.empty());
  write_atomically(folder.file("config.json"), R"({"model_type": "llama", "eos_token_id": 2})");
  EXPECT_EQ(read_generation_defaults(folder.path()).end_ids, std::vector<int64_t>{2});
  write_atomically(
      folder.file("generation_config.json"),
      R"({"eos_token_id": [7, 9], "temperature": 0.6, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.1, "do_sample": true})");
  const auto read = read_generation_defaults(folder.path());
  EXPECT_EQ(read.end_ids, (std::vector<int64_t>{7, 9}));
  EXPECT_EQ(read.temperature, 0.6);
  EXPECT_EQ(read.top_k, 20);
  write_atomically(folder.file("generation_config.json"), R"({"do_sample": false, "temperature": 0.6})");
  EXPECT_EQ(read_generation_defaults(folder.path()).temperature, 0.0);
  write_atomically(folder.file("generation_config.json"), R"({"temperature": "hot"})");
  EXPECT_THROW(read_generation_defaults(folder.path()), InputError);
}

// Rendered text and ids of the fixtures' tokenizers.
TEST(ChatPrompt, GivesTheTextAndIdsOfTheFixtures) {
  int cases = 0;
  for (const char* parent : {"tests/data/hf_tiny", "tests/data/hf_tiny/tokenizers"}) {
    if (!std::filesystem::is_directory(parent)) continue;
    for (const auto& entry : std::filesystem::directory_iterator(parent)) {
      const auto expected = entry.path() / "expected.json";
      if (!std::filesystem::exists(expected)) continue;
      const auto json = Json::parse(read_text(expected.string()));
      if (!json.contains("chat_cases")) continue;
      const ChatPrompt prompt(read_chat_files(entry.path().string()));
      const auto tokenizer = load_tokenizer(entry.path().string());
      for (const auto& each : json["chat_cases"]) {
        auto variables = each;
        for (const char* key : {"messages", "add_generation_prompt", "rendered", "ids"}) variables.erase(key);
        const auto text =
            prompt.render(each["messages"], each.value("add_generation_prompt", false), variables);
        EXPECT_EQ(text, each["rendered"].get<std::string>()) << entry.path();
        if (each.contains("ids")) {
          EXPECT_EQ(tokenizer->encode(text), each["ids"].get<std::vector<int64_t>>()) << entry.path();
        }
        ++cases;
      }
    }
  }
  EXPECT_GT(cases, 0) << "no fixture with chat_cases";
}

}  // namespace
}  // namespace weft
