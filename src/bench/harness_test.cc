#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <sstream>

#include "base/error.h"
#include "base/files.h"
#include "bench/busy.h"
#include "bench/first_call.h"
#include "bench/machine.h"
#include "bench/model.h"
#include "bench/ops.h"
#include "bench/peers/eager.h"

namespace weft::bench {
namespace {

TEST(Timing, StatisticsOfSamples) {
  const auto odd = summarize({5, 1, 2, 4, 3});
  EXPECT_DOUBLE_EQ(odd.median_s, 3);
  EXPECT_DOUBLE_EQ(odd.best_s, 1);
  EXPECT_DOUBLE_EQ(odd.spread, (4.0 - 2.0) / 3.0);
  EXPECT_EQ(odd.samples, 5);
  const auto even = summarize({4, 1, 3, 2});
  EXPECT_DOUBLE_EQ(even.median_s, 2.5);
  EXPECT_DOUBLE_EQ(even.spread, (3.25 - 1.75) / 2.5);
  const auto one = summarize({7});
  EXPECT_DOUBLE_EQ(one.median_s, 7);
  EXPECT_DOUBLE_EQ(one.spread, 0);
  EXPECT_THROW(summarize({}), InputError);
}

TEST(Timing, TakesTurnsAndCountsSamples) {
  std::string order;
  int64_t waits = 0;
  const auto timings =
      time_in_turns({[&] { order += 'a'; }, [&] { order += 'b'; }},
                    {.warm_up = 2, .samples = 3, .minimum_s = 0, .sample_s = 0, .wait = [&] { ++waits; }});
  EXPECT_EQ(order, "aaabbbababab");  // two to warm up and one to see how long a call takes
  EXPECT_EQ(waits, 10);
  ASSERT_EQ(timings.size(), 2u);
  EXPECT_EQ(timings[0].samples, 3);
  EXPECT_LE(timings[0].best_s, timings[0].median_s);
}

TEST(Timing, ASampleIsManyShortCalls) {
  int64_t calls = 0;
  const auto timing =
      time_in_turns({[&] { ++calls; }}, {.warm_up = 0, .samples = 2, .minimum_s = 0, .sample_s = 1.0});
  EXPECT_EQ(calls, 1 + 2 * 10000);  // the most calls that a sample has
  EXPECT_EQ(timing[0].samples, 2);
}

TEST(Floor, TheSlowerOfMemoryAndArithmetic) {
  const Rates rates{.copy = 10e9, .flops = 100e9};
  EXPECT_DOUBLE_EQ(floor_s({.bytes = 20e9, .flops = 100e9}, rates), 2);
  EXPECT_DOUBLE_EQ(floor_s({.bytes = 20e9, .flops = 500e9}, rates), 5);
  EXPECT_DOUBLE_EQ(floor_s({}, rates), 0);
  EXPECT_THROW(floor_s({1, 1}, {}), InputError);
}

TEST(Floor, PercentAndSpeedupOfARow) {
  Row row;
  row.floor_s = 1;
  EXPECT_EQ(row.percent(), 0);
  row.weft = Timing{.median_s = 4};
  EXPECT_DOUBLE_EQ(row.percent(), 25);
  EXPECT_EQ(row.speedup(), 0);
  row.peers = {
      {"slow", Timing{.median_s = 8}, ""}, {"fast", Timing{.median_s = 6}, ""}, {"wrong", {}, "differs"}};
  EXPECT_DOUBLE_EQ(row.speedup(), 1.5);
  EXPECT_EQ(row.best_peer()->name, "fast");
}

// y = x w, with a peer and calls that are counted by size.
struct Fake {
  OpCase subject;
  std::shared_ptr<int64_t> large_calls = std::make_shared<int64_t>(0);
};

Fake product(const TensorFunction& weft, const TensorFunction& peer) {
  Fake fake;
  const auto right = [](const Tensors& x) { return Tensors{at::matmul(x[0], x[1])}; };
  auto& subject = fake.subject;
  subject.op = "product";
  subject.shape = "64";
  subject.peer = "a fake";
  subject.weft = [weft, count = fake.large_calls](const Tensors& x) {
    *count += x[0].size(0) == 64;
    return weft(x);
  };
  subject.reference = right;
  subject.peer_call = peer;
  subject.inputs = [] { return Tensors{at::ones({64, 64}), at::ones({64, 64})}; };
  subject.check_inputs = [] { return Tensors{at::rand({5, 7}), at::rand({7, 3})}; };
  subject.flops = 2 * 64 * 64 * 64;
  return fake;
}

const Rates kRates{.copy = 1e9, .flops = 1e9};
const OpsOptions kShort{.device = at::kCPU,
                        .timing = {.warm_up = 0, .samples = 2, .minimum_s = 0, .sample_s = 0}};
const TensorFunction kRight = [](const Tensors& x) { return Tensors{at::matmul(x[0], x[1])}; };

TEST(RunOp, TimesBothPassesOfARightOp) {
  const auto fake = product(kRight, kRight);
  const auto rows = run_op(fake.subject, kRates, kShort);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0].pass, "fwd");
  EXPECT_EQ(rows[1].pass, "f+b");
  for (const auto& row : rows) {
    EXPECT_TRUE(row.weft && row.best_peer()) << row.weft_wrong;
    EXPECT_EQ(row.dtype, "fp32");
  }
  constexpr double tensor = 64 * 64 * 4, flops = 2.0 * 64 * 64 * 64;
  EXPECT_DOUBLE_EQ(rows[0].work.bytes, 3 * tensor);
  EXPECT_DOUBLE_EQ(rows[1].work.bytes, 8 * tensor);  // x, w, y twice, and the gradients of x and w
  EXPECT_DOUBLE_EQ(rows[0].work.flops, flops);
  EXPECT_DOUBLE_EQ(rows[1].work.flops, 3 * flops);
  EXPECT_DOUBLE_EQ(rows[1].floor_s, 3 * flops / 1e9);
}

TEST(RunOp, RefusesToTimeAWrongOutput) {
  const auto fake = product([](const Tensors& x) { return Tensors{at::matmul(x[0], x[1]) * 1.001}; }, kRight);
  const auto rows = run_op(fake.subject, kRates, kShort);
  for (const auto& row : rows) {
    EXPECT_FALSE(row.weft || row.best_peer());
    EXPECT_NE(row.weft_wrong.find("output 0: error 1.0e-03"), std::string::npos) << row.weft_wrong;
  }
  EXPECT_EQ(*fake.large_calls, 0);
}

TEST(RunOp, RefusesToTimeAWrongGradient) {
  const auto fake =
      product([](const Tensors& x) { return Tensors{at::matmul(x[0], x[1].detach())}; }, kRight);
  const auto rows = run_op(fake.subject, kRates, kShort);
  EXPECT_FALSE(rows[0].weft);
  EXPECT_NE(rows[0].weft_wrong.find("gradient 1"), std::string::npos) << rows[0].weft_wrong;
  EXPECT_EQ(*fake.large_calls, 0);
}

TEST(RunOp, ReportsWhatAnOpThrowsAndNaN) {
  const auto thrown = product([](const Tensors&) -> Tensors { throw InputError("no such shape"); }, kRight);
  EXPECT_EQ(run_op(thrown.subject, kRates, kShort)[0].weft_wrong, "no such shape");
  const auto nan = product([](const Tensors& x) { return Tensors{at::matmul(x[0], x[1]) * NAN}; }, kRight);
  EXPECT_FALSE(run_op(nan.subject, kRates, kShort)[0].weft_wrong.empty());
}

TEST(RunOp, AWrongPeerIsNotTimed) {
  const auto fake = product(kRight, [](const Tensors& x) { return Tensors{at::matmul(x[0], x[1]) * 1.01}; });
  const auto rows = run_op(fake.subject, kRates, kShort);
  EXPECT_TRUE(rows[0].weft);
  EXPECT_FALSE(rows[0].best_peer());
  EXPECT_FALSE(rows[0].peers.at(0).wrong.empty());
  EXPECT_EQ(rows[0].speedup(), 0);
}

// A shell script in the place of a peer, after it has said who it is.
std::string script(const std::string& answers) {
  return "sh -c 'echo peer fake 1; echo case p64; echo ready; " + answers + "'";
}

OpsOptions with_peer(const std::string& command) {
  auto options = kShort;
  options.peers.push_back(std::make_shared<ExternalPeer>(command, 5));
  return options;
}

TEST(ExternalPeer, TakesTurnsWithTheOp) {
  auto fake = product(kRight, kRight);
  fake.subject.external = "p64";
  const auto rows = run_op(fake.subject, kRates,
                           with_peer(script("while read verb key calls; do echo time $calls.5; done")));
  ASSERT_EQ(rows[0].peers.size(), 2u);
  EXPECT_EQ(rows[0].peers[1].name, "fake 1");
  EXPECT_DOUBLE_EQ(rows[0].peers[1].timing.value().median_s, 1.5);
  EXPECT_EQ(rows[1].peers.size(), 1u);  // no backward
  fake.subject.external = "p65";
  EXPECT_EQ(run_op(fake.subject, kRates, with_peer(script("cat")))[0].peers.size(), 1u);
}

TEST(ExternalPeer, OneThatFailsIsReportedAndTheRunGoesOn) {
  for (const auto& [answers, found] :
       {std::pair<const char*, const char*>{"exit 1", "it has ended"},
        {"read line; echo nonsense; cat", "it answers"},
        {"read line; echo time 0.1; read line; echo error too large; cat", "too large"},
        {"read line; echo time -3; cat", "time -3"}}) {
    auto fake = product(kRight, kRight);
    fake.subject.external = "p64";
    const auto rows = run_op(fake.subject, kRates, with_peer(script(answers)));
    EXPECT_TRUE(rows[0].weft && rows[1].weft) << answers;
    ASSERT_EQ(rows[0].peers.size(), 2u);
    EXPECT_FALSE(rows[0].peers[1].timing);
    EXPECT_NE(rows[0].peers[1].wrong.find(found), std::string::npos) << rows[0].peers[1].wrong;
  }
}

TEST(ExternalPeer, AnErrorIsOfItsCaseOnly) {
  auto fake = product(kRight, kRight);
  fake.subject.external = "p64";
  const auto rows =
      run_op(fake.subject, kRates,
             with_peer("sh -c 'echo peer fake 1; echo case p64; echo case p64.backward; echo ready; "
                       "while read verb key calls; do if [ $key = p64 ]; then echo error too large; else "
                       "echo time $calls; fi; done'"));
  ASSERT_EQ(rows[0].peers.size(), 2u);
  EXPECT_NE(rows[0].peers[1].wrong.find("too large"), std::string::npos) << rows[0].peers[1].wrong;
  ASSERT_EQ(rows[1].peers.size(), 2u);
  EXPECT_TRUE(rows[1].peers[1].timing) << rows[1].peers[1].wrong;
}

TEST(ExternalPeer, OneThatIsNoPeerIsAnError) {
  EXPECT_THROW(ExternalPeer("true"), InputError);
  EXPECT_THROW(ExternalPeer("echo hello"), InputError);
  EXPECT_THROW(ExternalPeer("echo ready"), InputError);
  EXPECT_THROW(ExternalPeer("sleep 20", 0.2), InputError);
  EXPECT_THROW(ExternalPeer("/no/such/program"), InputError);
}

TEST(Timing, RestsBeforeEachSample) {
  const auto begin = std::chrono::steady_clock::now();
  const auto timings = time_in_turns({[] {}, [] {}}, {.warm_up = 0,
                                                      .samples = 3,
                                                      .minimum_s = 0,
                                                      .sample_s = 0,
                                                      .most_samples = 3,
                                                      .rest_s = 0.01,
                                                      .wait = {}});
  EXPECT_GE(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(60));
  EXPECT_LT(timings[0].median_s, 0.005);  // the rest is not counted
}

// Clock ticks that a process has run, and the letter of its state ('R', 'T' for held).
std::pair<int64_t, char> ticks_of(pid_t process) {
  const auto text = read_text("/proc/" + std::to_string(process) + "/stat");
  std::istringstream words(text.substr(text.rfind(')') + 2));
  std::string word;
  words >> word;
  const char state = word[0];
  for (int i = 0; i < 11; ++i) words >> word;
  return {std::stoll(word), state};
}

std::vector<pid_t> children() {
  std::vector<pid_t> found;
  std::istringstream words(read_text("/proc/self/task/" + std::to_string(getpid()) + "/children"));
  for (pid_t process; words >> process;) found.push_back(process);
  return found;
}

TEST(Busy, CompetitorsRunOnlyWhenToldAndEnd) {
  const auto before = children().size();
  {
    Competitors competitors;
    ASSERT_GE(competitors.count(), 1u);
    const auto processes = children();
    ASSERT_EQ(processes.size(), before + competitors.count());
    const auto process = processes.back();
    competitors.run();
    for (int i = 0; i < 500 && ticks_of(process).first < 3; ++i) usleep(10000);
    EXPECT_GE(ticks_of(process).first, 3);
    competitors.hold();
    for (int i = 0; i < 100 && ticks_of(process).second != 'T'; ++i) usleep(10000);
    EXPECT_EQ(ticks_of(process).second, 'T');
  }
  EXPECT_EQ(children().size(), before);
}

TEST(Busy, RowsOfARightAndAWrongOp) {
  Competitors competitors;
  const BusyOptions quick{.timing = {.warm_up = 0, .samples = 2, .minimum_s = 0, .sample_s = 0, .wait = {}},
                          .settle_s = 0};
  const auto rows = run_busy(product(kRight, kRight).subject, competitors, quick);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[1].pass, "f+b");
  EXPECT_GT(rows[0].slowdown(), 0);
  EXPECT_EQ(rows[0].busy.samples, 2);
  const auto wrong = product([](const Tensors& x) { return Tensors{at::matmul(x[0], x[1]) * 2}; }, kRight);
  EXPECT_FALSE(run_busy(wrong.subject, competitors, quick)[0].wrong.empty());
  EXPECT_EQ(*wrong.large_calls, 0);
}

TEST(FirstCall, SaysALineForEachPass) {
  std::string said;
  call_once(product(kRight, kRight).subject, 1.5, [&](std::string_view line) { said += line; });
  EXPECT_EQ(said.rfind("result fwd ", 0), 0u);
  EXPECT_NE(said.find("\nresult f+b "), std::string::npos);
  EXPECT_NE(said.find(" 1.5"), std::string::npos) << said;
  auto step = product(kRight, kRight).subject;
  step.step = true;
  said.clear();
  call_once(step, 0, [&](std::string_view line) { said += line; });
  EXPECT_EQ(said.rfind("result step ", 0), 0u);
  EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 1);
}

TEST(FirstCall, CountsFromTheStartOfTheProcess) {
  const auto calls =
      first_calls("sh -c 'sleep 0.05; echo result fwd 0.001 0; sleep 0.05; echo result f+b 0.5 0.02'");
  ASSERT_EQ(calls.size(), 2u);
  EXPECT_EQ(calls[0].pass, "fwd");
  EXPECT_GE(calls[0].start_s, 0.05);
  EXPECT_DOUBLE_EQ(calls[1].call_s, 0.5);
  EXPECT_DOUBLE_EQ(calls[1].inputs_s, 0.02);
  EXPECT_GE(calls[1].start_s, 0.08);
  EXPECT_THROW(first_calls("echo nonsense"), InputError);
  EXPECT_THROW(first_calls("true"), InputError);
  EXPECT_THROW(first_calls("sh -c 'echo result fwd 1 1; exit 3'"), InputError);
}

TEST(OpCases, EachHasAFamily) {
  for (const auto& subject : op_cases(at::kFloat, at::kCPU))
    EXPECT_FALSE(subject.family.empty()) << subject.op;
}

// Every op that `weft bench` times, and every peer, on the small inputs of the check.
TEST(OpCases, OpsAndPeersAgreeWithTheReference) {
  for (const auto dtype : {at::kFloat, at::kBFloat16})
    for (const auto& subject : op_cases(dtype, at::kCPU)) {
      const auto name = subject.op + " " + subject.shape + " " + dtype_name(dtype);
      EXPECT_EQ(difference(subject, subject.weft, subject.bound, subject.gradient_bound), "") << name;
      const double loose = dtype == at::kFloat ? 1e-3 : 1e-1;
      if (!subject.peer_call) continue;
      EXPECT_EQ(difference(subject, subject.peer_call, loose, loose), "")
          << name << ", peer " << subject.peer;
    }
}

TEST(ModelBench, TimesEveryPartOfASmallModel) {
  ModelOptions options;
  options.vocab = 40;
  options.width = 16;
  options.layers =
      Node::parse("[{mixer: gated_delta_net, heads: 2, head_dim: 8}, {mixer: attention, heads: 2}]", "test");
  ModelSubject subject{.name = "small",
                       .model = std::make_unique<Model>(options),
                       .optimizer = Node::parse("{muon: {lr: 0.01}}", "test"),
                       .batch = 2,
                       .length = 9};
  subject.model->initialize(1);
  const auto rows = run_model(subject, kRates, {.steps = 2, .prompt = 12, .generate = 3});
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_EQ(rows[0].part, "train");
  EXPECT_EQ(rows[0].tokens, 18);
  EXPECT_EQ(rows[1].tokens, 12);
  EXPECT_EQ(rows[2].tokens, 1);
  for (const auto& row : rows) {
    EXPECT_GT(row.tokens_per_second(), 0) << row.part;
    EXPECT_GT(row.floor_s, 0) << row.part;
  }
  EXPECT_THROW(run_model(subject, kRates, {.parts = {"trian"}}), InputError);
  subject.optimizer = {};
  EXPECT_THROW(run_model(subject, kRates, {.parts = {"train"}}), InputError);
}

}  // namespace
}  // namespace weft::bench
