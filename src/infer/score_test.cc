#include "infer/score.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "infer/tiny_model.h"

namespace weft {
namespace {

std::vector<int64_t> some_ids(int64_t count) {
  std::vector<int64_t> ids;
  for (int64_t i = 0; i < count; ++i) ids.push_back((i * i * 31 + 7 * i) % 257);
  return ids;
}

double difference(const at::Tensor& a, const at::Tensor& b) {
  EXPECT_EQ(a.sizes(), b.sizes());
  return ((a - b).abs().max() / b.abs().max()).item<double>();
}

TEST(Score, TheThreeFormsAgree) {
  const auto model = tiny_model();
  const auto ids = some_ids(300);  // more than one block of rows
  const auto whole = score(*model, ids);
  EXPECT_EQ(whole.scalar_type(), at::kDouble);
  EXPECT_EQ(whole.sizes(), (std::vector<int64_t>{300, 257}));
  EXPECT_LT(difference(score(*model, ids, {.step = true}), whole), 1e-10);
  for (const int64_t chunk : {1, 7, 64, 299, 300, 1000})
    EXPECT_LT(difference(score(*model, ids, {.chunk = chunk}), whole), 1e-10);
}

TEST(Score, RowsComeInOrderAndInBlocks) {
  const auto model = tiny_model(at::kFloat);
  std::vector<int64_t> rows;
  score(*model, some_ids(600), {}, [&](const at::Tensor& logits) { rows.push_back(logits.size(0)); });
  EXPECT_EQ(rows, (std::vector<int64_t>{256, 256, 88}));
}

TEST(Score, RefusesBadIdsAndOptions) {
  const auto model = tiny_model();
  EXPECT_THROW(score(*model, {}), InputError);
  EXPECT_THROW(score(*model, std::vector<int64_t>{257}), InputError);
  EXPECT_THROW(score(*model, std::vector<int64_t>{-1}), InputError);
  EXPECT_THROW(score(*model, std::vector<int64_t>{1}, {.chunk = 4, .step = true}), InputError);
  EXPECT_THROW(score(*model, std::vector<int64_t>{1}, {.chunk = -4}), InputError);
}

}  // namespace
}  // namespace weft
