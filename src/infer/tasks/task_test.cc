// Scores of tasks against values computed here from the model's logits alone.
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "base/files.h"
#include "base/scratch_folder.h"
#include "infer/score.h"
#include "infer/tasks/run_task.h"
#include "infer/tiny_model.h"
#include "io/tokenizers/tokenizer.h"
#include "io/tokenizers/utf8.h"

namespace weft {
namespace {

constexpr int64_t kEnd = 256;  // the byte tokenizer's end of text

struct TasksTest : ::testing::Test {
  std::unique_ptr<Model> model = tiny_model();
  std::shared_ptr<const Tokenizer> tokenizer = load_tokenizer("bytes");
  ScratchFolder folder;

  LikelihoodScorer scorer(LikelihoodOptions options = {}) const { return {*model, *tokenizer, options}; }

  // log p of ids[from..] given those before, at most `window` inputs; and whether all are the likeliest.
  Likelihood direct(std::vector<int64_t> ids, size_t from) const {
    const auto table = score(*model, std::span(ids).first(ids.size() - 1)).log_softmax(-1);
    Likelihood out;
    for (size_t i = from; i < ids.size(); ++i) {
      const auto row = table[static_cast<int64_t>(i) - 1];
      out.log_probability += row[ids[i]].item<double>();
      out.greedy &= row.argmax().item<int64_t>() == ids[i];
    }
    return out;
  }
  Likelihood direct(const std::string& context, const std::string& continuation) const {
    auto ids = tokenizer->encode(context);
    if (ids.empty()) ids.push_back(kEnd);
    const size_t from = ids.size();
    for (const auto id : tokenizer->encode(continuation)) ids.push_back(id);
    return direct(ids, from);
  }
  // What the model writes greedily.
  std::string greedy(const std::string& context, int count) const {
    auto ids = tokenizer->encode(context);
    std::vector<int64_t> out;
    for (int i = 0; i < count; ++i) {
      ids.push_back(score(*model, ids)[-1].argmax().item<int64_t>());
      out.push_back(ids.back());
    }
    return tokenizer->decode(out);
  }
  std::string file(const std::string& text) const {
    write_atomically(folder.file("t.jsonl"), text);
    return folder.file("t.jsonl");
  }
  std::map<std::string, Metric> run(const std::string& text, RunTaskOptions options = {}) const {
    std::map<std::string, Metric> out;
    const auto scored = run_task(*model, *tokenizer, read_task_file(file(text)), options);
    for (const auto& metric : scored->metrics) out[metric.name] = metric;
    return out;
  }
};

TEST_F(TasksTest, BlanksAtTheEndOfAContextGoToTheContinuation) {
  const auto scores = scorer();
  EXPECT_EQ(scores.encode("ab \n", "c").context, tokenizer->encode("ab"));
  EXPECT_EQ(scores.encode("ab \n", "c").continuation, tokenizer->encode(" \nc"));
  EXPECT_EQ(scores.encode("", "c").context, std::vector<int64_t>{kEnd});
  EXPECT_EQ(scores.encode("  ", "c").continuation, tokenizer->encode("  c"));
  EXPECT_THROW(scores.encode("a", ""), InputError);
  // A token across the boundary: what is behind as many ids as the context has.
  const auto merged = load_tokenizer("tests/data/hf_tiny/tokenizers/bpe512_special");
  const auto larger = tiny_model(at::kDouble, 600);
  const LikelihoodScorer other(*larger, *merged, {});
  for (const auto& [context, continuation] :
       {std::pair<std::string, std::string>{"Hel", "lo world"}, {"the quick", " brown"}, {"a b ", "c"}}) {
    const auto pair = other.encode(context, continuation);
    const auto whole = merged->encode(context + continuation);
    const auto before = merged->encode(context.substr(0, context.find_last_not_of(' ') + 1));
    EXPECT_EQ(pair.context, before);
    EXPECT_EQ(pair.continuation,
              std::vector<int64_t>(whole.begin() + static_cast<std::ptrdiff_t>(before.size()), whole.end()));
  }
}

TEST_F(TasksTest, LikelihoodsAreThoseOfTheLogits) {
  const std::vector<std::string> texts = {" x", " long er", " y!", " zzzz", "\xC3\xA9"};
  for (const int64_t batch : {1, 2, 16})
    for (const int64_t chunk : {3, 512}) {
      auto scores = scorer({.batch = batch, .chunk = chunk});
      for (const std::string context : {"The context", "The context", "", "other"}) {
        const auto got = scores.score(context, texts);
        ASSERT_EQ(got.size(), texts.size());
        for (size_t i = 0; i < texts.size(); ++i)
          EXPECT_NEAR(got[i].log_probability, direct(context, texts[i]).log_probability, 1e-9);
      }
    }
  const auto own = greedy("Some words", 6);
  auto scores = scorer();
  EXPECT_TRUE(scores.score("Some words", {own})[0].greedy);
  EXPECT_FALSE(scores.score("Some words", {own + "~"})[0].greedy &&
               scores.score("Some words", {own + "^"})[0].greedy);
}

TEST_F(TasksTest, AWindowCutsTheContextByWhatEachContinuationNeeds) {
  auto scores = scorer({.max_length = 8});
  const auto got = scores.score("0123456789", {" a", " bcd", "x"});
  const auto ids = tokenizer->encode("0123456789 a");
  EXPECT_NEAR(got[0].log_probability, direct({ids.end() - 9, ids.end()}, 7).log_probability, 1e-9);
  EXPECT_NEAR(got[1].log_probability, direct(tokenizer->encode("56789 bcd"), 5).log_probability, 1e-9);
  EXPECT_THROW(scores.score("x", {" 123456789"}), InputError);
}

TEST_F(TasksTest, ChoicesCountByWholeAndByBytes) {
  const auto metrics = run(R"({"context": "Q: 1?", "choices": ["a", "bb", "cccc"], "answer": 1, "id": 7}
{"context": "Q: 2?", "choices": ["yes", "no"], "answer": 0}

{"context": "Q: 3?", "choices": ["é", "e"], "answer": 1, "delimiter": "\n"})");
  const std::vector<std::tuple<std::string, std::vector<std::string>, size_t, std::string>> items = {
      {"Q: 1?", {"a", "bb", "cccc"}, 1, " "},
      {"Q: 2?", {"yes", "no"}, 0, " "},
      {"Q: 3?", {"é", "e"}, 1, "\n"}};
  double right = 0, by_bytes = 0;
  for (const auto& [context, choices, answer, delimiter] : items) {
    size_t best = 0, best_mean = 0;
    std::vector<double> sums, means;
    for (const auto& choice : choices) {
      sums.push_back(direct(context, delimiter + choice).log_probability);
      means.push_back(sums.back() / static_cast<double>(choice.size()));
      if (sums.back() > sums[best]) best = sums.size() - 1;
      if (means.back() > means[best_mean]) best_mean = means.size() - 1;
    }
    right += best == answer;
    by_bytes += best_mean == answer;
  }
  EXPECT_NEAR(metrics.at("acc").value, right / 3, 1e-12);
  EXPECT_NEAR(metrics.at("acc_norm").value, by_bytes / 3, 1e-12);
  const double p = right / 3;
  EXPECT_NEAR(*metrics.at("acc").error, std::sqrt(p * (1 - p) * 3 / 2) / std::sqrt(3.0), 1e-12);
}

TEST_F(TasksTest, TargetsGiveAccuracyAndPerplexity) {
  const auto own = greedy("A b c", 3);
  TaskFile task{.name = "t", .kind = TaskKind::likelihood, .items = {}};
  for (const auto& [context, target] : {std::pair<std::string, std::string>{"A b c", own}, {"A", " qz"}}) {
    task.items.push_back({.context = context, .continuations = {target}, .choices = {target}});
  }
  const auto metrics = run_task(*model, *tokenizer, task, {})->metrics;
  const auto a = direct("A b c", own), b = direct("A", " qz");
  EXPECT_EQ(metrics[0].value, (1.0 + b.greedy) / 2);
  EXPECT_EQ(metrics[1].name, "perplexity");
  const double expected = std::exp(-(a.log_probability + b.log_probability) / 2);
  EXPECT_NEAR(metrics[1].value, expected, 1e-9 * expected);
  EXPECT_FALSE(metrics[1].error);
}

// The model's own text is the right answer; a stop string ends it before.
TEST_F(TasksTest, GeneratedTextIsComparedUpToTheStop) {
  const auto text = to_utf8(greedy("story", 6));
  TaskItem item{.context = "story"};
  item.max_tokens = 6;
  item.targets = {"nothing", text};
  TaskFile task{.name = "t", .kind = TaskKind::generate, .items = {item, item}};
  task.items[1].targets = {text + "x"};
  const auto whole = run_task(*model, *tokenizer, task, {});
  EXPECT_EQ(whole->metrics[0].name, "exact_match");
  EXPECT_EQ(whole->metrics[0].value, 0.5);
  task.items.resize(1);
  task.items[0].until = {text};
  task.items[0].targets = {""};
  EXPECT_EQ(run_task(*model, *tokenizer, task, {})->metrics[0].value, 1.0);
}

TEST_F(TasksTest, WholeTextsRollThroughWindowsOrOneState) {
  const std::string text = " Two words\nand more ";
  auto ids = tokenizer->encode(text);
  ids.insert(ids.begin(), kEnd);
  const double all = direct(ids, 1).log_probability;
  for (const int64_t chunk : {1, 7, 512}) EXPECT_NEAR(scorer({.chunk = chunk}).score_text(text), all, 1e-4);
  // Windows of 8: tokens 1-8, 9-16, and the last ones with the 8 inputs before them.
  double windows = 0;
  const auto part = [&](size_t begin, size_t end, size_t from) {
    windows += direct({ids.begin() + static_cast<std::ptrdiff_t>(begin),
                       ids.begin() + static_cast<std::ptrdiff_t>(end)},
                      from)
                   .log_probability;
  };
  part(0, 9, 1);
  part(8, 17, 1);
  part(ids.size() - 9, ids.size(), 9 - (ids.size() - 17));
  EXPECT_NEAR(scorer({.max_length = 8}).score_text(text), windows, 1e-4);
  const auto metrics = run(nlohmann::json({{"text", text}}).dump());
  EXPECT_NEAR(metrics.at("word_perplexity").value, std::exp(-all / 6),
              1e-3 * std::exp(-all / 6));  // 4 words, 2 ends
  EXPECT_NEAR(metrics.at("byte_perplexity").value, std::exp(-all / 20), 1e-3);
  EXPECT_NEAR(metrics.at("bits_per_byte").value, -all / 20 / std::log(2.0), 1e-4);
}

TEST_F(TasksTest, ShotsStandBeforeTheQuestion) {
  const auto path = file(
      R"({"context": "Q", "target": "A", "shots": [{"context": "q1", "target": "a1"}, "plain"], "separator": "|"})");
  EXPECT_EQ(read_task_file(path).items[0].context, "q1 a1|plain|Q");
  EXPECT_EQ(read_task_file(path, 1).items[0].context, "q1 a1|Q");
  EXPECT_EQ(read_task_file(path, 0).items[0].context, "Q");
  EXPECT_THROW(read_task_file(path, 3), InputError);
}

TEST_F(TasksTest, BrokenLinesAreNamed) {
  const std::string good = R"({"context": "c", "target": "t"})"
                           "\n";
  const std::pair<const char*, const char*> cases[] = {
      {"{", "t.jsonl:2"},
      {"[1]", "t.jsonl:2: expected an object"},
      {R"({"context": 3, "target": "t"})", "t.jsonl:2: context"},
      {R"({"target": "t"})", "t.jsonl:2: "},
      {R"({"context": "c"})", "expected one of the fields"},
      {R"({"context": "c", "target": "t", "what": 1})", "what"},
      {R"({"context": "c", "choices": ["a", "b"], "answer": 0})",
       "is of the kind choice, but the lines before are likelihood"}};
  for (const auto& [line, part] : cases) {
    try {
      read_task_file(file(good + line));
      FAIL() << line;
    } catch (const InputError& error) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find("t.jsonl:2"), std::string::npos) << error.what();
    }
  }
  for (const char* line : {R"({"context": "c", "choices": ["a", "b"], "answer": 2})",
                           R"({"context": "c", "choices": ["a"], "answer": 0})",
                           R"({"context": "c", "choices": ["a", "b"], "answer": "a"})",
                           R"({"context": "c", "target": "a", "max_tokens": 0})", R"({"text": ""})", ""})
    EXPECT_THROW(read_task_file(file(line)), InputError) << line;
  EXPECT_THROW(read_task_file(folder.file("none")), InputError);
}

TEST_F(TasksTest, GeneratedTasksAreScoredByTheirPositions) {
  const auto node = Node::parse("{task: mqar, length: 32, vocab: 64, pairs: 4}", "test");
  const auto score_of = run_generated_task(*model, node, 20, {});
  ASSERT_TRUE(score_of);
  EXPECT_EQ(score_of->items, 20);
  EXPECT_LT(score_of->metrics[0].value, 0.5);  // random weights know nothing
  EXPECT_THROW(run_generated_task(*model, Node::parse("{task: mqar, vocab: 5000}", "test"), 20, {}),
               InputError);
}

TEST_F(TasksTest, CancelledGivesNoScore) {
  RunTaskOptions options;
  options.cancelled = [] { return true; };
  EXPECT_FALSE(run_task(*model, *tokenizer, read_task_file(file(R"({"text": "abc"})")), options));
}

TEST(MeanMetric, HasTheSamplesStandardError) {
  EXPECT_EQ(mean_metric("m", {1}).error, std::nullopt);
  const auto metric = mean_metric("m", {1, 2, 3, 6});
  EXPECT_EQ(metric.value, 3);
  EXPECT_NEAR(*metric.error, std::sqrt(14.0 / 3) / 2, 1e-12);
}

}  // namespace
}  // namespace weft
