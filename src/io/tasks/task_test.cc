#include "io/tasks/task.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <zlib.h>

#include <cmath>
#include <fstream>
#include <set>

#include "base/error.h"
#include "base/scratch_folder.h"
#include "io/datasets/compressed.h"

namespace weft {
namespace {

Node node(const std::string& text) { return Node::parse(text, "test"); }

const int64_t* row_of(const at::Tensor& t, int64_t row) { return t.data_ptr<int64_t>() + row * t.size(1); }

TEST(Task, EveryGeneratedTaskIsSeededAndKeepsItsShape) {
  for (const auto& name : task_names()) {
    if (name == "digits" || name == "classify_series") continue;  // these read files
    auto description = node("{task: " + name + "}");
    if (name == "list_ops") description = node("{task: list_ops, shortest: 10, length: 60}");
    const auto task = make_task(description);
    const auto shape = task->shape();
    const auto a = task->examples(Split::train, 3, 2, 7), again = task->examples(Split::train, 3, 2, 7);
    EXPECT_TRUE(a.inputs.equal(again.inputs)) << name;
    const auto second = task->examples(Split::train, 4, 1, 7);
    EXPECT_TRUE(a.inputs.slice(0, 1).equal(second.inputs))
        << name << ": an example depends on its number only";
    EXPECT_FALSE(a.inputs.equal(task->examples(Split::test, 3, 2, 7).inputs)) << name;
    if (task->size(Split::train) == 0) {
      EXPECT_FALSE(a.inputs.equal(task->examples(Split::train, 3, 2, 8).inputs)) << name;
    }
    if (shape.vocab > 0) {
      EXPECT_GE(a.inputs.min().item<int64_t>(), 0) << name;
      EXPECT_LT(a.inputs.max().item<int64_t>(), shape.vocab) << name;
    } else {
      EXPECT_EQ(a.inputs.size(2), shape.features) << name;
    }
    if (shape.kind == TaskShape::Kind::tokens) {
      const auto asked = a.targets.masked_select(a.targets != kNoTarget);
      ASSERT_GT(asked.numel(), 0) << name;
      EXPECT_GE(asked.min().item<int64_t>(), 0) << name;
      EXPECT_LT(asked.max().item<int64_t>(), shape.outputs) << name;
    }
    EXPECT_EQ(resolve_task(description).at("task").as_string(), name);
  }
}

TEST(Task, MqarAsksForValuesOfKeysThatStandBefore) {
  const auto task = make_task(node("{task: mqar, length: 64, pairs: 8, vocab: 64}"));
  const auto examples = task->examples(Split::train, 0, 50, 1);
  int64_t near = 0, far = 0;
  for (int64_t row = 0; row < 50; ++row) {
    const auto* input = row_of(examples.inputs, row);
    const auto* target = row_of(examples.targets, row);
    std::map<int64_t, int64_t> pairs;
    for (int64_t i = 0; i < 8; ++i) pairs[input[2 * i]] = input[2 * i + 1];
    EXPECT_EQ(pairs.size(), 8u) << "keys differ";
    int64_t asked = 0;
    for (int64_t t = 0; t < 64; ++t) {
      if (target[t] == kNoTarget) continue;
      ++asked;
      EXPECT_GE(t, 16);
      EXPECT_EQ(target[t], pairs.at(input[t]));
      EXPECT_GE(target[t], 32);
      (t < 40 ? near : far)++;
    }
    EXPECT_EQ(asked, 8);
  }
  EXPECT_GT(near, 2 * far) << "gaps follow a power law";
}

TEST(Task, SelectiveCopyingGivesTheDataInOrder) {
  const auto task = make_task(node("{task: selective_copying, length: 20, data: 5, symbols: 6}"));
  const auto examples = task->examples(Split::test, 0, 20, 1);
  std::set<int64_t> places;
  for (int64_t row = 0; row < 20; ++row) {
    const auto* input = row_of(examples.inputs, row);
    std::vector<int64_t> data, asked;
    for (int64_t t = 0; t < 20; ++t)
      if (input[t] < 6) data.push_back(input[t]), places.insert(t);
    for (int64_t t = 20; t < 25; ++t) {
      EXPECT_EQ(input[t], 7);
      asked.push_back(row_of(examples.targets, row)[t]);
    }
    EXPECT_EQ(data, asked);
  }
  EXPECT_GT(places.size(), 15u) << "anywhere in the row";
}

TEST(Task, InductionHeadsAsksWhatFollowedTheSpecialToken) {
  const auto task = make_task(node("{task: induction_heads, length: 32, vocab: 8}"));
  const auto examples = task->examples(Split::train, 0, 40, 1);
  for (int64_t row = 0; row < 40; ++row) {
    const auto* input = row_of(examples.inputs, row);
    int64_t seen = 0, follower = -1;
    for (int64_t t = 0; t < 31; ++t)
      if (input[t] == 7) ++seen, follower = input[t + 1];
    EXPECT_EQ(seen, 1);
    EXPECT_EQ(input[31], 7);
    EXPECT_EQ(row_of(examples.targets, row)[31], follower);
  }
}

TEST(Task, DelayGivesTheInputBack) {
  const auto task = make_task(node("{task: delay, length: 50, delay: 7}"));
  const auto examples = task->examples(Split::train, 0, 3, 1);
  EXPECT_TRUE(examples.targets.slice(1, 7).equal(examples.inputs.slice(1, 0, 43)));
  EXPECT_TRUE(examples.targets.slice(1, 0, 7).isnan().all().item<bool>());
  const auto noise =
      make_task(node("{task: delay, length: 20000, delay: 1}"))->examples(Split::train, 0, 1, 1).inputs;
  EXPECT_NEAR(noise.mean().item<double>(), 0, 0.03);
  EXPECT_NEAR(noise.var().item<double>(), 1, 0.05);
}

TEST(Task, MachinesFollowTheirRules) {
  const auto parity =
      make_task(node("{task: parity, length: 30, shortest: 10}"))->examples(Split::train, 0, 20, 1);
  std::set<int64_t> lengths;
  for (int64_t row = 0; row < 20; ++row) {
    int64_t state = 0, tokens = 0;
    for (int64_t t = 0; t < 30; ++t) {
      const int64_t token = row_of(parity.inputs, row)[t], target = row_of(parity.targets, row)[t];
      if (token == 2) {
        EXPECT_EQ(target, kNoTarget);
        continue;
      }
      state ^= token;
      ++tokens;
      EXPECT_EQ(target, state);
    }
    EXPECT_GE(tokens, 10);
    lengths.insert(tokens);
  }
  EXPECT_GT(lengths.size(), 5u);

  const auto sums = make_task(node("{task: modular_addition, length: 12, modulus: 5, last_only: true}"))
                        ->examples(Split::train, 0, 10, 1);
  EXPECT_TRUE((sums.inputs.sum(1) % 5).equal(sums.targets.select(1, 11)));
  EXPECT_EQ((sums.targets != kNoTarget).sum().item<int64_t>(), 10);

  const auto flips = make_task(node("{task: flip_flop, length: 40}"))->examples(Split::train, 0, 30, 1);
  for (int64_t row = 0; row < 30; ++row) {
    const auto* input = row_of(flips.inputs, row);
    const auto* target = row_of(flips.targets, row);
    int64_t memory = -1;
    EXPECT_EQ(input[0], 2);
    EXPECT_EQ(input[38], 3);
    for (int64_t t = 0; t < 40; t += 2) {
      if (input[t] == 3) {
        EXPECT_EQ(target[t], memory);
        EXPECT_EQ(input[t + 1], memory);
      }
      if (input[t] == 2) memory = input[t + 1];
      EXPECT_EQ(target[t + 1], kNoTarget);
    }
  }
}

// The group table: products are associative, the identity is element 0, and S5 is not commutative.
TEST(Task, PermutationWordsAreAGroup) {
  const auto last = [](const std::vector<int64_t>& word) {
    // All words of two tokens are drawn until this one comes.
    const auto task = make_task(node("{task: permutation_words, items: 3, length: 2}"));
    for (int64_t i = 0;; ++i) {
      const auto example = task->examples(Split::train, i, 1, 1);
      const auto* input = row_of(example.inputs, 0);
      if (input[0] == word[0] && input[1] == word[1]) return row_of(example.targets, 0)[1];
    }
  };
  bool commutes = true;
  for (int64_t a = 0; a < 6; ++a) {
    EXPECT_EQ(last({a, 0}), a);
    EXPECT_EQ(last({0, a}), a);
    for (int64_t b = 0; b < 6; ++b) {
      commutes = commutes && last({a, b}) == last({b, a});
      for (int64_t c = 0; c < 6; ++c) EXPECT_EQ(last({last({a, b}), c}), last({a, last({b, c})}));
    }
  }
  EXPECT_FALSE(commutes);
  EXPECT_EQ(make_task(node("{task: permutation_words, group: alternating}"))->shape().outputs, 61)
      << "60 and padding";
}

int64_t value_of(const int64_t*& token) {
  const int64_t first = *token++;
  if (first < 10) return first;
  std::vector<int64_t> values;
  while (*token != 14) values.push_back(value_of(token));
  ++token;
  std::sort(values.begin(), values.end());
  if (first == 10) return values.front();
  if (first == 11) return values.back();
  const size_t n = values.size();
  if (first == 12) return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
  int64_t sum = 0;
  for (const auto v : values) sum += v;
  return sum % 10;
}

TEST(Task, ListOpsValuesAreRight) {
  const auto task = make_task(node("{task: list_ops, shortest: 20, length: 100}"));
  const auto examples = task->examples(Split::train, 0, 40, 1);
  for (int64_t row = 0; row < 40; ++row) {
    const auto* token = row_of(examples.inputs, row);
    const auto* const begin = token;
    EXPECT_EQ(value_of(token), examples.targets[row].item<int64_t>());
    EXPECT_GT(token - begin, 20);
    EXPECT_LT(token - begin, 100);
    for (; token < begin + 100; ++token) EXPECT_EQ(*token, 15);
  }
}

void write_gzip(const std::string& path, const std::string& text) {
  gzFile file = gzopen(path.c_str(), "wb");
  ASSERT_EQ(gzwrite(file, text.data(), static_cast<unsigned>(text.size())), static_cast<int>(text.size()));
  gzclose(file);
}

std::string bytes(std::initializer_list<int> values) {
  std::string text;
  for (const int value : values) text += static_cast<char>(value);
  return text;
}

TEST(Task, DigitsReadsIdxFilesAndVisitsEveryImageOnceAnEpoch) {
  const ScratchFolder folder;
  std::string images = bytes({0, 0, 8, 3, 0, 0, 0, 6, 0, 0, 0, 2, 0, 0, 0, 2}),
              labels = bytes({0, 0, 8, 1, 0, 0, 0, 6});
  for (int n = 0; n < 6; ++n) {
    images += bytes({n, 10 * n, 20 * n, 255});
    labels += bytes({n % 3});
  }
  write_gzip(folder.file("images.gz"), images);
  write_gzip(folder.file("labels.gz"), labels);
  const auto text = "{task: digits, images: " + folder.file("images.gz") +
                    ", labels: " + folder.file("labels.gz") + ", test_fraction: 0.34";
  const auto task = make_task(node(text + "}"));
  EXPECT_EQ(task->size(Split::train), 4);
  EXPECT_EQ(task->size(Split::test), 2);
  EXPECT_EQ(task->shape().outputs, 2 + 1);
  const auto test = task->examples(Split::test, 0, 2, 1);
  EXPECT_EQ(test.inputs.sizes(), (std::vector<int64_t>{2, 4, 1}));
  EXPECT_FLOAT_EQ(test.inputs[1][1][0].item<float>(), 50.0F / 255);
  EXPECT_EQ(test.targets[1].item<int64_t>(), 2);
  const auto epoch = task->examples(Split::train, 4, 4, 1);  // the second one
  std::set<float> seen;
  for (int64_t n = 0; n < 4; ++n) seen.insert(epoch.inputs[n][0][0].item<float>());
  EXPECT_EQ(seen.size(), 4u);
  const auto permuted = make_task(node(text + ", permuted: true}"))->examples(Split::test, 0, 2, 1);
  EXPECT_TRUE(std::get<0>(permuted.inputs.sort(1)).equal(std::get<0>(test.inputs.sort(1))));

  std::ofstream(folder.file("short.gz"), std::ios::binary)
      << read_data_file(folder.file("images.gz")).substr(0, 20);
  EXPECT_THROW(make_task(node("{task: digits, images: " + folder.file("short.gz") +
                              ", labels: " + folder.file("labels.gz") + "}")),
               InputError);
}

TEST(Task, DataFilesThatAreAbsentOrDamagedAreNamed) {
  const ScratchFolder folder;
  try {
    make_task(node("{task: digits, images: /nowhere/images, hint: get it there}"));
    FAIL();
  } catch (const InputError& error) {
    EXPECT_NE(std::string(error.what()).find("/nowhere/images: no such file; get it there"),
              std::string::npos);
  }
  write_gzip(folder.file("whole.gz"), std::string(100000, 'x') + "end");
  EXPECT_EQ(read_data_file(folder.file("whole.gz")).size(), 100003u);
  EXPECT_THROW(read_data_file(folder.file("whole.gz"), "", 1000), InputError);
  std::ifstream in(folder.file("whole.gz"), std::ios::binary);
  std::string packed((std::istreambuf_iterator<char>(in)), {});
  std::ofstream(folder.file("cut.gz"), std::ios::binary) << packed.substr(0, packed.size() / 2);
  EXPECT_THROW(read_data_file(folder.file("cut.gz")), InputError);
  packed[packed.size() / 2] ^= 0x55;
  std::ofstream(folder.file("wrong.gz"), std::ios::binary) << packed;
  EXPECT_THROW(read_data_file(folder.file("wrong.gz")), InputError);
}

TEST(Task, SeriesWindowsFollowOneAnother) {
  const ScratchFolder folder;
  std::string csv = "date,a,b\n";
  for (int t = 0; t < 60; ++t) csv += fmt::format("2026-01-01 {},{},{}\n", t, t, 1000 - 2 * t);
  std::ofstream(folder.file("t.csv")) << csv;
  const auto task = make_task(node("{task: series, file: " + folder.file("t.csv") +
                                   ", input: 6, horizon: 2, train_rows: 30, valid_rows: 10, test_rows: 20, "
                                   "instance_norm: false}"));
  EXPECT_EQ(task->size(Split::train), 2 * 23);
  EXPECT_EQ(task->size(Split::test), 2 * 19);
  const auto test = task->examples(Split::test, 0, 38, 1);
  // Channel a after scaling by rows 0 .. 29: mean 14.5, variance (30^2 - 1) / 12.
  const double deviation = std::sqrt(899.0 / 12);
  EXPECT_NEAR(test.inputs[0][0][0].item<double>(), (34 - 14.5) / deviation, 1e-5);
  EXPECT_NEAR(test.targets[0][1].item<double>(), (41 - 14.5) / deviation, 1e-5);
  EXPECT_NEAR(test.targets[18][1].item<double>(), (59 - 14.5) / deviation, 1e-5)
      << "the last row is the last target";
  EXPECT_NEAR(test.inputs[19][0][0].item<double>(), -(34 - 14.5) / deviation, 1e-5) << "then channel b";
  std::ofstream(folder.file("bad.csv")) << "date,a\n1,2\n1,x\n";
  EXPECT_THROW(make_task(node("{task: series, file: " + folder.file("bad.csv") + "}")), InputError);
}

TEST(Task, ClassifySeriesReadsTsFiles) {
  const ScratchFolder folder;
  std::ofstream(folder.file("a.ts")) << "# a\n@problemName x\n@data\n1,2,3:4,5,6:yes\n1,2:0,1:no\n";
  std::ofstream(folder.file("b.ts")) << "@data\n3,2,1:6,5,4:yes\n";
  const auto task = make_task(
      node("{task: classify_series, train: " + folder.file("a.ts") + ", test: " + folder.file("b.ts") + "}"));
  EXPECT_EQ(task->shape().features, 2);
  EXPECT_EQ(task->shape().outputs, 2);
  const auto test = task->examples(Split::test, 0, 1, 1);
  EXPECT_EQ(test.targets[0].item<int64_t>(), 1);
  EXPECT_NEAR(test.inputs[0][0][1].item<double>(), std::sqrt(1.5), 1e-5);
  std::ofstream(folder.file("c.ts")) << "@data\n3,2,1:6,5,4:maybe\n";
  EXPECT_THROW(make_task(node("{task: classify_series, train: " + folder.file("a.ts") +
                              ", test: " + folder.file("c.ts") + "}")),
               InputError);
}

TEST(Task, MistakesInOptionsAreNamed) {
  EXPECT_THROW(make_task(node("{task: mqarr}")), InputError);
  EXPECT_THROW(make_task(node("{task: mqar, length: 16, pairs: 8}")), InputError);
  EXPECT_THROW(make_task(node("{task: mqar, vocab: 8, pairs: 4}")), InputError);
  EXPECT_THROW(make_task(node("{task: parity, shortest: 50}")), InputError);
  EXPECT_THROW(make_task(node("{task: delay, delay: 1024}")), InputError);
  EXPECT_THROW(make_task(node("{task: list_ops, shortest: 99, length: 100}")), InputError);
}

}  // namespace
}  // namespace weft
