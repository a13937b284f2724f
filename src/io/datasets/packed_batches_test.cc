#include "io/datasets/packed_batches.h"

#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "base/error.h"
#include "base/scratch_folder.h"
#include "io/datasets/permutation.h"
#include "ops/loss/loss.h"

namespace weft {
namespace {

using Ids = std::vector<int64_t>;
using Order = PackedOptions::Order;

// Documents of the given lengths; token number p of all has the id p, so that ids tell where they come from.
class PackedBatchesTest : public testing::Test {
 protected:
  std::shared_ptr<const TokenFile> file_of(const Ids& lengths) {
    TokenFileWriter writer(folder_.file("a"), 10'000, "test");
    int64_t next = 0;
    starts_.clear();
    for (const int64_t length : lengths) {
      starts_.insert(next);
      Ids document(static_cast<size_t>(length));
      for (auto& id : document) id = next++;
      writer.add(document);
    }
    size_ = next;
    writer.finish();
    return std::make_shared<TokenFile>(folder_.file("a"));
  }

  // What holds for every batch: the target is the next token unless a document ends, and starts mark
  // documents.
  void expect_sound(const TokenBatch& batch) const {
    const int64_t rows = batch.tokens.size(0), length = batch.tokens.size(1);
    ASSERT_EQ(batch.tokens.sizes(), batch.targets.sizes());
    ASSERT_EQ(batch.tokens.sizes(), batch.starts.sizes());
    const auto tokens = batch.tokens.accessor<int64_t, 2>(), targets = batch.targets.accessor<int64_t, 2>();
    const auto starts = batch.starts.accessor<bool, 2>();
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t t = 0; t < length; ++t) {
        const int64_t next = (tokens[r][t] + 1) % size_;
        EXPECT_EQ(targets[r][t], starts_.count(next) ? ops::kIgnoreTarget : next) << r << " " << t;
        EXPECT_EQ(starts[r][t], t == 0 || starts_.count(tokens[r][t]) > 0) << r << " " << t;
        if (t > 0) {
          EXPECT_EQ(tokens[r][t], (tokens[r][t - 1] + 1) % size_);
        }
      }
  }

  ScratchFolder folder_;
  std::set<int64_t> starts_;
  int64_t size_ = 0;
};

Ids ids_of(const at::Tensor& tensor) {
  const at::Tensor flat = tensor.contiguous();
  return Ids(flat.const_data_ptr<int64_t>(), flat.const_data_ptr<int64_t>() + flat.numel());
}

TEST_F(PackedBatchesTest, ShuffledBatchesAreSound) {
  for (const int64_t length : {1, 2, 7, 20, 59, 60}) {
    PackedBatches batches(file_of({5, 1, 1, 30, 23}), {.length = length, .rows = 3});
    for (int n = 0; n < 40; ++n) expect_sound(batches.next());
  }
}

TEST_F(PackedBatchesTest, AnEpochSeesEveryTokenAtMostOnce) {
  PackedBatches batches(file_of({40, 63}), {.length = 10, .rows = 1});
  ASSERT_EQ(batches.rows_per_epoch(), 10);
  std::set<Ids> orders;
  for (int epoch = 0; epoch < 20; ++epoch) {
    std::set<int64_t> seen;
    Ids order;
    for (int64_t row = 0; row < 10; ++row) {
      EXPECT_EQ(batches.position(), (BatchPosition{epoch, row}));
      const Ids ids = ids_of(batches.next().tokens);
      seen.insert(ids.begin(), ids.end());
      order.push_back(ids[0]);
    }
    EXPECT_EQ(seen.size(), 100u);
    orders.insert(order);
  }
  EXPECT_EQ(orders.size(), 20u);  // each epoch has its own offset and order
}

TEST_F(PackedBatchesTest, SeedsDecideTheOrder) {
  const auto file = file_of({500});
  const auto first = [&](uint64_t seed) {
    return ids_of(PackedBatches(file, {.length = 5, .rows = 20, .seed = seed}).next().tokens);
  };
  EXPECT_EQ(first(1), first(1));
  EXPECT_NE(first(1), first(2));
}

TEST_F(PackedBatchesTest, APositionIsRestoredExactly) {
  const auto file = file_of({100, 33});
  for (const auto order : {Order::shuffled, Order::sequential}) {
    const PackedOptions options{.length = 10, .rows = 3, .seed = 4, .order = order};
    PackedBatches first(file, options);
    for (int n = 0; n < 11; ++n) first.next();
    PackedBatches second(file, options);
    second.seek(first.position());
    for (int n = 0; n < 11; ++n) {
      const TokenBatch a = first.next(), b = second.next();
      EXPECT_TRUE(at::equal(a.tokens, b.tokens) && at::equal(a.targets, b.targets) &&
                  at::equal(a.starts, b.starts));
      EXPECT_EQ(first.position(), second.position());
    }
  }
  PackedBatches batches(file, {.length = 10, .rows = 3});
  for (const BatchPosition bad : {BatchPosition{-1, 0}, BatchPosition{0, -1}, BatchPosition{0, 13}})
    EXPECT_THROW(batches.seek(bad), InputError);
}

TEST_F(PackedBatchesTest, SequentialOrderGivesEveryTokenOnce) {
  for (const int64_t length : {1, 4, 10, 35, 100}) {
    PackedBatches batches(file_of({5, 1, 29}), {.length = length, .rows = 2, .order = Order::sequential});
    int64_t expected = 0, targets = 0;
    for (int64_t n = 0; n < batches.batches_per_epoch(); ++n) {
      const TokenBatch batch = batches.next();
      const Ids tokens = ids_of(batch.tokens), wanted = ids_of(batch.targets);
      const at::Tensor starts = batch.starts.reshape({-1});
      for (size_t i = 0; i < tokens.size(); ++i) {
        const bool row_start = static_cast<int64_t>(i) % length == 0;
        if (expected < 35) {
          EXPECT_EQ(tokens[i], expected);
          EXPECT_EQ(starts[static_cast<int64_t>(i)].item<bool>(), row_start || starts_.count(expected) > 0);
          const bool ends = expected == 34 || starts_.count(expected + 1) > 0;
          EXPECT_EQ(wanted[i], ends ? ops::kIgnoreTarget : expected + 1);
        } else {  // padding
          EXPECT_EQ(tokens[i], 0);
          EXPECT_EQ(wanted[i], ops::kIgnoreTarget);
          EXPECT_EQ(starts[static_cast<int64_t>(i)].item<bool>(), row_start || expected == 35);
        }
        ++expected;
        targets += wanted[i] != ops::kIgnoreTarget;
      }
    }
    EXPECT_GE(expected, 35);
    EXPECT_LT(expected, 35 + length);
    EXPECT_EQ(targets, 32);  // all but the first token of each document
    EXPECT_EQ(batches.position(), (BatchPosition{1, 0}));
  }
}

TEST_F(PackedBatchesTest, PartsTogetherAreTheWhole) {
  const auto file = file_of({50, 77});
  for (const auto order : {Order::shuffled, Order::sequential}) {
    PackedBatches whole(file, {.length = 10, .rows = 6, .order = order});
    std::vector<PackedBatches> parts;
    for (int64_t part = 0; part < 3; ++part)
      parts.emplace_back(file,
                         PackedOptions{.length = 10, .rows = 2, .order = order, .part = part, .parts = 3});
    for (int n = 0; n < 7; ++n) {
      std::vector<at::Tensor> tokens;
      for (auto& part : parts) tokens.push_back(part.next().tokens);
      EXPECT_TRUE(at::equal(at::cat(tokens), whole.next().tokens));
      for (auto& part : parts) EXPECT_EQ(part.position(), whole.position());
    }
  }
}

TEST_F(PackedBatchesTest, ChecksItsInput) {
  const auto file = file_of({20});
  EXPECT_THROW(PackedBatches(file, {.length = 21, .rows = 1}), InputError);
  EXPECT_NO_THROW(PackedBatches(file, {.length = 20, .rows = 1}));
  EXPECT_NO_THROW(PackedBatches(file, {.length = 21, .rows = 1, .order = Order::sequential}));
  EXPECT_THROW(PackedBatches(file, {.length = 0, .rows = 1}), InputError);
  EXPECT_THROW(PackedBatches(file, {.length = 5, .rows = 0}), InputError);
  EXPECT_THROW(PackedBatches(file, {.length = 5, .rows = 1, .part = 2, .parts = 2}), InputError);
  EXPECT_THROW(PackedBatches(file, {.length = 5, .rows = 1}, 9'999), InputError);
  EXPECT_NO_THROW(PackedBatches(file, {.length = 5, .rows = 1}, 10'000));
}

TEST(Permutation, IsOne) {
  for (const int64_t n : {1, 2, 3, 4, 5, 16, 17, 1000, 4097})
    for (const uint64_t seed : {0u, 1u, 2u}) {
      std::set<int64_t> seen;
      for (int64_t i = 0; i < n; ++i) seen.insert(Permutation(n, seed).at(i));
      EXPECT_EQ(static_cast<int64_t>(seen.size()), n);
      EXPECT_GE(*seen.begin(), 0);
      EXPECT_LT(*seen.rbegin(), n);
    }
}

TEST(Permutation, MixesWell) {
  // Of n in random order, the mean distance of neighbours is n / 3; its deviation over 10^5 draws is below
  // 0.1 %.
  const int64_t n = 100'000;
  const Permutation permutation(n, 9);
  double distance = 0, fixed = 0;
  for (int64_t i = 0; i + 1 < n; ++i) {
    distance += static_cast<double>(std::abs(permutation.at(i + 1) - permutation.at(i)));
    fixed += permutation.at(i) == i;
  }
  EXPECT_NEAR(distance / (n - 1) / n, 1.0 / 3, 0.005);
  EXPECT_LT(fixed, 12);  // Poisson with mean 1
}

TEST(Permutation, IsTheSameOnEveryMachine) {
  const Permutation permutation(1000, 42);
  EXPECT_EQ((Ids{permutation.at(0), permutation.at(1), permutation.at(2)}), (Ids{166, 714, 891}));
}

}  // namespace
}  // namespace weft
