// weft chat and weft eval --tasks from outside, on the tiny trained model.
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "trained_model.h"

namespace weft {
namespace {

#define EXPECT_PART(text, part) \
  EXPECT_NE((text).find(part), std::string::npos) << "expected '" << (part) << "' in:\n" << (text)

// The trained model in a folder of its own, with a chat template beside it.
struct CliChat : ::testing::Test {
  CliChat() {
    std::filesystem::copy(trained_model().run + "/model", folder.file("model"),
                          std::filesystem::copy_options::recursive);
    spill(folder.file("model") + "/chat_template.jinja",
          "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt "
          "%}<assistant>{% endif %}");
  }
  ProgramResult chat(const std::string& input, std::vector<std::string> more = {},
                     const std::string& tokens = "12") const {
    std::vector<std::string> arguments = {"chat", folder.file("model"), "-n", tokens, "-t",
                                          "0",    "--device",           "cpu"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return Program(arguments).input(input).run();
  }
  ScratchFolder folder;
};

TEST_F(CliChat, AnswersEachLineAndReadsOnlyWhatIsNew) {
  const auto result = chat("The shuttle\nand then\n");
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_GE(std::count(result.out.begin(), result.out.end(), '\n'), 2);
  EXPECT_PART(result.err, "prompt: 29 tokens read, 0 reused");  // <user>The shuttle\n<assistant>
  EXPECT_EQ(result.err.find("no chat template"), std::string::npos);
  // The first answer is what generate says to the same prompt.
  const auto direct = weft_program({"generate", folder.file("model"), "<user>The shuttle\n<assistant>", "-n",
                                    "12", "-t", "0", "--quiet", "--device", "cpu"});
  EXPECT_EQ(result.out.substr(0, direct.out.size()), direct.out);
}

TEST_F(CliChat, TakesLongMessagesAndCommands) {
  const auto lines = chat("one\\\ntwo\n", {"--quiet"}),
             quoted = chat("\"\"\"\none\ntwo\n\"\"\"\n", {"--quiet"});
  EXPECT_EQ(lines.out, quoted.out);
  EXPECT_EQ(lines.err, "");
  const auto same = chat("one\n/reset\none\n", {"--quiet"});
  const auto half = same.out.size() / 2;
  EXPECT_EQ(same.out.substr(0, half), same.out.substr(half));
  EXPECT_PART(chat("/help\n").err, "/system TEXT");
  EXPECT_EQ(chat("/exit\nnever\n").out, "");
  const auto wrong = chat("/sav x\n");
  EXPECT_EQ(wrong.code, 1);
  EXPECT_PART(wrong.err, "did you mean /save?");
  const auto system = chat("hi\n", {"--system", "S"}), by_command = chat("/system S\nhi\n");
  EXPECT_EQ(system.out, by_command.out);
  EXPECT_PART(system.err, "prompt: 30 tokens read");  // <system>S\n<user>hi\n<assistant>
}

TEST_F(CliChat, SavedConversationsGoOn) {
  const auto saved = folder.file("talk");
  const auto whole = chat("a\n/save " + saved + "\nb\n");
  EXPECT_EQ(whole.code, 0) << whole.err;
  EXPECT_TRUE(std::filesystem::exists(saved + "/state.safetensors"));
  const auto rest = chat("b\n", {"--load", saved});
  EXPECT_EQ(rest.code, 0) << rest.err;
  EXPECT_TRUE(whole.out.ends_with(rest.out)) << whole.out << "\n---\n" << rest.out;
  const auto refused = chat("", {"--load", saved, "--dtype", "bf16"});
  EXPECT_EQ(refused.code, 1);
  EXPECT_PART(refused.err, "another model, tokenizer or --dtype");
  EXPECT_EQ(chat("/save " + folder.file("model") + "\n").code, 1);
}

TEST_F(CliChat, FollowsTheModelsFolder) {
  spill(folder.file("model") + "/generation_config.json", "{\"do_sample\": true, \"temperature\": \"x\"}");
  EXPECT_PART(chat("x\n").err, "temperature");
  spill(folder.file("model") + "/generation_config.json", "{\"eos_token_id\": [10, 32, 46, 101]}");
  const auto result = chat("The shuttle\n", {}, "300");
  EXPECT_PART(result.err, "ended by end of text");
  std::filesystem::remove(folder.file("model") + "/generation_config.json");
  spill(folder.file("model") + "/chat_template.jinja", "x\n{{ raise_exception('not today') }}");
  const auto refused = chat("x\n");
  EXPECT_EQ(refused.code, 1);
  EXPECT_PART(refused.err, "chat_template.jinja: line 2: not today");
  std::filesystem::remove(folder.file("model") + "/chat_template.jinja");
  EXPECT_PART(chat("x\n").err, "no chat template");
}

TEST_F(CliChat, ScoresTasks) {
  spill(folder.file("pick.jsonl"),
        "{\"context\": \"The shuttle carries thread number\", \"choices\": [\"37 through the warp.\", "
        "\"zq xxjqvkz qqwzj kk.\"], \"answer\": 0}\n"
        "{\"context\": \"The shuttle\", \"choices\": [\"qqqq zzzz kkkk\", \"carries thread\"], \"answer\": "
        "1}\n");
  spill(folder.file("text.jsonl"), "{\"text\": \"The shuttle carries thread number 5 through the warp.\"}\n");
  const auto result =
      weft_program({"eval", folder.file("model"), "--tasks", folder.file("pick.jsonl"), "--tasks",
                    folder.file("text.jsonl"), "--tasks", "{task: mqar, length: 32, vocab: 64, pairs: 4}",
                    "--limit", "50", "--device", "cpu"});
  EXPECT_EQ(result.code, 0) << result.err;
  for (const char* part : {"pick", "acc_norm", "1.0000", "text", "bits_per_byte", "mqar", "accuracy"})
    EXPECT_PART(result.out, part);
  const auto json = weft_program({"eval", folder.file("model"), "--tasks", folder.file("pick.jsonl"),
                                  "--json", "--quiet", "--device", "cpu"});
  EXPECT_EQ(nlohmann::json::parse(json.out)[0]["metrics"]["acc"]["value"], 1.0);
  EXPECT_EQ(json.err, "");
  spill(folder.file("pick.jsonl"), "{\"context\": \"x\", \"choices\": \"y\"}\n");
  const auto broken = weft_program({"eval", folder.file("model"), "--tasks", folder.file("pick.jsonl")});
  EXPECT_EQ(broken.code, 1);
  EXPECT_PART(broken.err, "pick.jsonl:1");
  EXPECT_EQ(weft_program({"eval", folder.file("model")}).code, 1);
}

}  // namespace
}  // namespace weft
