#include "nn/state.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace weft {
namespace {

at::Tensor numbers(int64_t batch, int64_t tokens) {
  return at::arange(batch * tokens, at::kFloat).view({batch, tokens});
}

TEST(State, CopiesAreIndependent) {
  State a;
  a.append("k", numbers(2, 3));
  a.set("S", at::ones({2}));
  State b = a;
  a.append("k", at::full({2, 1}, 7.0));
  b.append("k", at::full({2, 1}, 8.0));
  a.writable("S").fill_(5);
  EXPECT_EQ(a.at("k")[0][3].item<float>(), 7);
  EXPECT_EQ(b.at("k")[0][3].item<float>(), 8);
  EXPECT_EQ(b.at("S")[0].item<float>(), 1);
}

TEST(State, WritesInPlaceWhenNobodyShares) {
  State a;
  a.set("S", at::ones({4}));
  const void* before = a.at("S").const_data_ptr();
  a.writable("S").fill_(2);
  EXPECT_EQ(a.at("S").const_data_ptr(), before);
}

TEST(State, GrowsWithoutCopyingEachTime) {
  State a;
  a.append("k", numbers(1, 64));
  a.append("k", numbers(1, 1));
  const void* buffer = a.at("k").const_data_ptr();
  for (int i = 0; i < 30; ++i) a.append("k", numbers(1, 1));
  EXPECT_EQ(a.at("k").const_data_ptr(), buffer);
  EXPECT_EQ(a.at("k").size(1), 95);
  EXPECT_EQ(a.bytes(), 95 * 4);
}

TEST(State, FixedColumnsTakeTokensInPlace) {
  State a;
  a.append("k", numbers(2, 3));
  a.child("inner").append("slots", at::ones({2, 3}, at::kLong));
  a.set("S", at::ones({2}));
  auto cursor = at::full({1}, 3, at::kLong);
  EXPECT_EQ(a.columns(), 3);
  State fixed = a.with_columns(5, cursor);
  const void* before = fixed.at("k").const_data_ptr();
  fixed.append("k", at::full({2, 1}, 7.0));
  fixed.child("inner").append("slots", at::full({2, 1}, 9, at::kLong));
  EXPECT_EQ(fixed.at("k").const_data_ptr(), before);
  EXPECT_TRUE(at::equal(fixed.at("k")[0], at::tensor({0.f, 1.f, 2.f, 7.f, 0.f})));
  EXPECT_TRUE(at::equal(fixed.child("inner").at("slots")[1], at::tensor({1, 1, 1, 9, -1}, at::kLong)));
  EXPECT_THROW(fixed.keep("k", 0, 2), Unsupported);
  EXPECT_THROW(fixed.select(at::zeros({1}, at::kLong)), Unsupported);
  State again = fixed.growing(4);
  again.append("k", at::full({2, 2}, 8.0));
  EXPECT_EQ(again.at("k").size(1), 6);
  EXPECT_EQ(again.at("k")[1][3].item<float>(), 7);
  EXPECT_EQ(a.at("k").size(1), 3);
  EXPECT_THROW(a.with_columns(2, cursor), InputError);
  a.append("other", numbers(2, 4));
  EXPECT_THROW(a.with_columns(5, cursor), InputError);
  EXPECT_EQ(State().columns(), -1);
}

TEST(State, RowsOfDifferentLengthArePadded) {
  State a, shorter;
  a.append("slots", at::zeros({2, 4}, at::kLong));
  shorter.append("slots", at::ones({1, 2}, at::kLong));
  a.assign(at::full({1}, 1, at::kLong), shorter);
  EXPECT_TRUE(at::equal(a.at("slots"), at::tensor({0, 0, 0, 0, 1, 1, -1, -1}, at::kLong).view({2, 4})));
}

TEST(State, LoadingNamesWhatDoesNotFit) {
  State a;
  a.set("S", at::zeros({1, 2, 3}));
  a.child("inner").append("k", at::zeros({1, 0, 4}));
  const auto message = [&](const std::map<std::string, at::Tensor>& tensors) -> std::string {
    try {
      a.with(tensors);
    } catch (const InputError& error) {
      return error.what();
    }
    return "no error";
  };
  const auto s = at::zeros({5, 2, 3}), k = at::zeros({5, 9, 4});
  EXPECT_EQ(message({{"S", s}, {"inner/k", k}}), "no error");
  EXPECT_NE(message({{"S", s}}).find("inner/k is missing"), std::string::npos);
  EXPECT_NE(
      message({{"S", at::zeros({1, 2, 4})}, {"inner/k", k}}).find("S is [1, 2, 4], expected [-1, 2, 3]"),
      std::string::npos);
  EXPECT_NE(message({{"S", s}, {"inner/k", k}, {"T", s}}).find("T is not an entry"), std::string::npos);
}

}  // namespace
}  // namespace weft
