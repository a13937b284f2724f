#include "infer/generate.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "infer/score.h"
#include "infer/tiny_model.h"
#include "io/tokenizers/byte_tokenizer.h"
#include "io/tokenizers/utf8.h"

namespace weft {
namespace {

const ByteTokenizer bytes;

Generation run(const GenerateOptions& options, std::string_view prompt = "A prompt", Model* model = nullptr) {
  const auto own = model ? nullptr : tiny_model();
  return generate(model ? *model : *own, bytes, prompt, options);
}

// What greedy decoding must give: the largest logit of the whole form, again and again.
std::vector<int64_t> greedy_by_whole_runs(Model& model, std::string_view prompt, int64_t count) {
  auto ids = bytes.encode(prompt);
  const size_t begin = ids.size();
  for (int64_t i = 0; i < count; ++i) ids.push_back(score(model, ids)[-1].argmax().item<int64_t>());
  return {ids.begin() + static_cast<std::ptrdiff_t>(begin), ids.end()};
}

TEST(Generate, GreedyIsTheArgmaxOfTheWholeForm) {
  const auto model = tiny_model();
  const auto expected = greedy_by_whole_runs(*model, "A prompt", 40);
  for (const int64_t chunk : {1, 3, 512}) {
    const auto out = run({.sampling = {.temperature = 0},
                          .max_tokens = 40,
                          .stop_at_end_of_text = false,
                          .prefill_chunk = chunk},
                         "A prompt", model.get());
    EXPECT_EQ(out.ids, expected);
  }
}

TEST(Generate, SeedsDecide) {
  const auto draw = [](uint64_t seed) { return run({.sampling = {.seed = seed}, .max_tokens = 50}).ids; };
  EXPECT_EQ(draw(3), draw(3));
  EXPECT_NE(draw(3), draw(4));
}

TEST(Generate, ReportsCountsAndTimes) {
  const auto out = run({.max_tokens = 20, .stop_at_end_of_text = false});
  EXPECT_EQ(out.prompt_tokens, 8);
  EXPECT_EQ(out.ids.size(), 20u);
  EXPECT_EQ(out.reason, StopReason::max_tokens);
  EXPECT_GT(out.first_token_s, 0);
  EXPECT_GT(out.tokens_per_second(), 0);
  EXPECT_GT(out.state_bytes, 0);
}

TEST(Generate, StreamsWhatItReturnsAndOnlyValidUtf8) {
  const auto model = tiny_model();
  std::string streamed;
  const auto out = generate(*model, bytes, "x", {.max_tokens = 200}, [&](std::string_view piece) {
    EXPECT_FALSE(piece.empty());
    EXPECT_TRUE(is_utf8(piece));
    streamed += piece;
  });
  EXPECT_EQ(streamed, out.text);
  EXPECT_EQ(out.text, to_utf8(bytes.decode(out.ids, true)));
}

TEST(Generate, StopStringsSpanTokens) {
  const auto model = tiny_model();
  const GenerateOptions options{
      .sampling = {.temperature = 0}, .max_tokens = 60, .stop_at_end_of_text = false};
  const auto free = run(options, "stop", model.get());
  ASSERT_GT(free.text.size(), 12u);
  size_t at = 6;  // somewhere that is the beginning of a character
  while ((free.text[at] & 0xC0) == 0x80) ++at;
  auto stopped = options;
  stopped.stop = {free.text.substr(at, 4)};
  const auto out = run(stopped, "stop", model.get());
  EXPECT_EQ(out.reason, StopReason::stop_string);
  EXPECT_EQ(out.text, free.text.substr(0, free.text.find(stopped.stop[0])));
}

TEST(Generate, EndsAtEndOfText) {
  const auto model = tiny_model();
  // So hot that every token is about equally likely.
  const auto out = run({.sampling = {.temperature = 100}, .max_tokens = 20000}, "x", model.get());
  ASSERT_EQ(out.reason, StopReason::end_of_text);
  EXPECT_EQ(out.ids.back(), ByteTokenizer::kEndOfText);
}

TEST(Generate, CanBeCancelled) {
  int64_t asked = 0;
  const auto out =
      run({.max_tokens = 50, .stop_at_end_of_text = false, .cancelled = [&] { return ++asked > 5; }});
  EXPECT_EQ(out.reason, StopReason::cancelled);
  EXPECT_EQ(out.ids.size(), 5u);  // one question before prefill, four before steps
}

TEST(Generate, AnEmptyPromptBeginsADocument) {
  const auto out = run({.max_tokens = 3, .stop_at_end_of_text = false}, "");
  EXPECT_EQ(out.prompt_tokens, 1);
  EXPECT_EQ(out.ids.size(), 3u);
}

TEST(Generate, NoTokensWanted) {
  const auto out = run({.max_tokens = 0});
  EXPECT_TRUE(out.ids.empty());
  EXPECT_EQ(out.tokens_per_second(), 0);
}

TEST(Generate, NeverDrawsIdsWithoutText) {
  const auto model = tiny_model(at::kDouble, 4096);  // most ids are padding
  const auto out = run({.max_tokens = 100, .stop_at_end_of_text = false}, "x", model.get());
  for (const int64_t id : out.ids) EXPECT_TRUE(bytes.is_token(id));
}

TEST(Generate, RefusesATokenizerThatDoesNotFit) {
  const auto model = tiny_model(at::kDouble, 100);
  EXPECT_THROW(run({}, "x", model.get()), InputError);
  EXPECT_THROW(run({.max_tokens = -1}), InputError);
  EXPECT_THROW(run({.sampling = {.top_p = 0}}), InputError);
}

}  // namespace
}  // namespace weft
