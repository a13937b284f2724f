// Conversations with small random models: the state that is kept gives the answers of one that reads all anew.
#include "infer/chat.h"

#include <gtest/gtest.h>

#include "base/files.h"
#include "base/scratch_folder.h"
#include "infer/tiny_model.h"
#include "io/tokenizers/tokenizer.h"

namespace weft {
namespace {

constexpr const char* kChatMl =
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}{% if add_generation_prompt "
    "%}<assistant>{% endif %}";

struct ChatTest : ::testing::Test {
  std::shared_ptr<const Tokenizer> tokenizer = load_tokenizer("bytes");
  std::unique_ptr<Model> model = tiny_model();

  Chat chat(const std::string& source = kChatMl, ChatOptions options = {}) const {
    ChatFiles files;
    if (!source.empty()) files.templates["default"] = source;
    files.source = "test";
    options.sampling.temperature = 0.7;
    if (options.max_tokens == 1024) options.max_tokens = 12;
    return Chat(*model, *tokenizer, ChatPrompt(files), options);
  }
};

// Answers do not depend on what was kept, and only what is new is read.
TEST_F(ChatTest, ReadsOnlyWhatIsNew) {
  auto kept = chat();
  for (int turn = 0; turn < 4; ++turn) {
    const auto question = "question " + std::to_string(turn);
    const auto before = kept.messages();
    const int64_t seen = kept.seen_tokens();
    const auto reply = kept.say(question);
    // The same history, read by a conversation that has no state yet.
    auto all = before;
    all.push_back({{"role", "user"}, {"content", question}});
    ChatFiles files;
    files.templates["default"] = kChatMl;
    const auto prompt = ChatPrompt(files).render(all, true);
    EXPECT_EQ(reply.read + reply.reused, static_cast<int64_t>(tokenizer->encode(prompt).size()));
    const auto direct = generate(
        *model, *tokenizer, prompt,
        {.sampling = {.temperature = 0.7, .seed = 1 + static_cast<uint64_t>(turn) * 0x9E3779B97F4A7C15u},
         .max_tokens = 12});
    EXPECT_EQ(direct.ids, reply.ids) << turn;
    EXPECT_EQ(direct.text, reply.text) << turn;
    if (turn > 0) {
      // All that the state had seen, unless the answer's bytes were no UTF-8 and read back as others.
      EXPECT_GT(reply.reused, 0);
      EXPECT_LE(reply.reused, seen);
    } else {
      EXPECT_EQ(reply.reused, 0);
    }
  }
}

// A template that takes the reasoning out of earlier answers: the state goes back to the prompt before that answer.
TEST_F(ChatTest, GoesBackWhereTheTemplateRewritesHistory) {
  const std::string source =
      "{% for m in messages %}{% if m.role == 'assistant' %}<A>!{% else %}<U>{{ m.content }}{% endif %}{% "
      "endfor %}"
      "{% if add_generation_prompt %}<A>{% endif %}";
  auto kept = chat(source);
  const auto first = kept.say("one");
  EXPECT_EQ(first.read, 9);  // <U>one<A>
  const auto second = kept.say("two");
  EXPECT_EQ(second.reused, 9);
  EXPECT_EQ(second.read, 10);  // !<U>two<A>
  const auto direct =
      generate(*model, *tokenizer, "<U>one<A>!<U>two<A>",
               {.sampling = {.temperature = 0.7, .seed = 1 + 0x9E3779B97F4A7C15u}, .max_tokens = 12});
  EXPECT_EQ(direct.ids, second.ids);
  // After a reset the next prompt shares its beginning only.
  kept.reset();
  const auto third = kept.say("onerous");
  EXPECT_EQ(third.reused + third.read, 13);
  EXPECT_LE(third.reused, 6);
}

TEST_F(ChatTest, AnsweringEndsAtAnyEndId) {
  auto options = ChatOptions{.max_tokens = 400};
  for (int64_t id = 0; id < 128; ++id) options.end_ids.push_back(id);  // half of all bytes
  const auto reply = chat(kChatMl, options).say("x");
  EXPECT_EQ(reply.reason, StopReason::end_of_text);
  EXPECT_LT(reply.ids.back(), 128);
  EXPECT_LT(reply.ids.size(), 400u);
}

TEST_F(ChatTest, ACancelledAnswerIsKeptAndAFailedTurnIsNot) {
  int asked = 0;
  ChatOptions options{.max_tokens = 50};
  options.cancelled = [&] { return ++asked > 5; };
  auto kept = chat(kChatMl, options);
  const auto reply = kept.say("hello");
  EXPECT_EQ(reply.reason, StopReason::cancelled);
  EXPECT_LT(reply.ids.size(), 10u);
  EXPECT_EQ(kept.messages().size(), 2u);
  EXPECT_EQ(kept.say("again").reason, StopReason::cancelled);  // before the prompt was read
  EXPECT_EQ(kept.messages().size(), 2u);
  auto refusing = chat("{{ raise_exception('no') }}");
  EXPECT_THROW(refusing.say("x"), InputError);
  EXPECT_EQ(refusing.messages().size(), 0u);
}

TEST_F(ChatTest, SystemMessageAndPlainForm) {
  auto plain = chat("", {.system = "Be kind."});
  plain.say("Hi");
  const auto messages = plain.messages();
  ASSERT_EQ(messages.size(), 3u);
  EXPECT_EQ(messages[0]["content"], "Be kind.");
  EXPECT_EQ(messages[2]["role"], "assistant");
  plain.reset();
  plain.set_system("");
  EXPECT_EQ(plain.messages().size(), 0u);
}

TEST_F(ChatTest, SavedAndLoadedGoesOnAsIfNothingHappened) {
  const ScratchFolder folder;
  const auto saved = folder.file("talk");
  auto one = chat(kChatMl, {.system = "S"});
  one.say("first");
  one.save(saved);
  one.save(saved);  // replaces
  auto two = chat();
  two.say("something else");
  two.load(saved);
  EXPECT_EQ(two.messages(), one.messages());
  EXPECT_EQ(two.seen_tokens(), one.seen_tokens());
  const auto a = one.say("second"), b = two.say("second");
  EXPECT_EQ(a.ids, b.ids);
  EXPECT_EQ(a.read + a.reused, b.read + b.reused);
}

TEST_F(ChatTest, LoadingRefusesWhatDoesNotFit) {
  const ScratchFolder folder;
  const auto saved = folder.file("talk");
  auto one = chat();
  one.say("first");
  one.save(saved);
  const auto before = one.messages();
  EXPECT_THROW(one.load(folder.file("none")), InputError);
  write_atomically(folder.file("file"), "x");
  EXPECT_THROW(one.save(folder.file("file")), InputError);

  const auto other = tiny_model(at::kFloat);
  Chat another(*other, *tokenizer, ChatPrompt(ChatFiles{}), {});
  try {
    another.load(saved);
    FAIL() << "another model's conversation was loaded";
  } catch (const InputError& error) {
    EXPECT_NE(std::string(error.what()).find("another model"), std::string::npos) << error.what();
  }
  const auto state = read_text(saved + "/state.safetensors");
  write_atomically(saved + "/state.safetensors", state.substr(0, state.size() / 2));
  EXPECT_THROW(one.load(saved), InputError);
  write_atomically(saved + "/state.safetensors", state);
  const auto text = read_text(saved + "/conversation.json");
  for (const auto& [from, to] : {std::pair<std::string, std::string>{"\"tokens\": [", "\"tokens\": [1,"},
                                 {"\"user\"", "\"someone\""},
                                 {"\"format\": 1", "\"format\": 2"},
                                 {"{", "["}}) {
    auto broken = text;
    broken.replace(broken.find(from), from.size(), to);
    write_atomically(saved + "/conversation.json", broken);
    EXPECT_THROW(one.load(saved), InputError) << from;
    EXPECT_EQ(one.messages(), before);
  }
  write_atomically(saved + "/conversation.json", text);
  one.load(saved);
}

}  // namespace
}  // namespace weft
