// Masks against their definitions in words, tile by tile work, scores that are capped or biased.
#include <gtest/gtest.h>

#include "ops/attention/attention.h"
#include "ops/attention/attention_cases.h"
#include "ops/reference_check.h"

namespace weft::ops {
namespace {

// Says whether query t of sequence b sees key s, for head h.
using Rule = std::function<bool(int64_t b, int64_t t, int64_t s, int64_t h)>;

struct MaskCase {
  std::string name;
  Mask mask;
  Rule rule;
  int64_t batch, queries, keys, heads = 2, key_heads = 1;
  AttentionOptions options = {};
};

int64_t at_entry(const at::Tensor& x, int64_t i, int64_t j) { return x[i][j].item<int64_t>(); }

std::vector<MaskCase> prefix_cases() {
  const auto prefix = at::tensor({5, 70}, at::kLong);
  const Rule rule = [=](int64_t b, int64_t t, int64_t s, int64_t) {
    return s <= t || s < prefix[b].item<int64_t>();
  };
  const Rule at_end = [=](int64_t b, int64_t t, int64_t s, int64_t h) { return rule(b, t + 31, s, h); };
  return {{"prefix", prefix_mask(prefix, 100), rule, 2, 100, 100},
          {"prefix, last queries", prefix_mask(prefix, 69), at_end, 2, 69, 100}};
}

std::vector<MaskCase> stride_cases() {
  std::vector<MaskCase> cases;
  for (const auto& [block, local, stride, sinks] :
       {std::array<int64_t, 4>{64, 1, 3, 0}, {16, 2, 4, 1}, {7, 1, 2, 0}, {64, 2, 8, 1}}) {
    for (const bool shifted : {false, true}) {
      const auto offsets = shifted ? at::tensor({0, 1, 5, 2}, at::kLong) : at::Tensor();
      const Rule rule = [=, b = block, l = local, n = stride, k = sinks](int64_t, int64_t t, int64_t s,
                                                                         int64_t h) {
        const int64_t i = t / b, j = s / b, offset = shifted ? offsets[h].item<int64_t>() : 0;
        return s <= t && (j > i - l || (j + offset) % n == n - 1 || j < k);
      };
      cases.push_back({fmt::format("blocks of {}, offsets {}", block, shifted),
                       block_stride_mask(1, 330, 330, block, local, stride, sinks, offsets), rule, 1, 330,
                       330, 4, 2});
    }
  }
  return cases;
}

std::vector<MaskCase> tidar_cases() {
  std::vector<MaskCase> cases;
  for (const auto& [tokens, block] : {std::pair<int64_t, int64_t>{96, 16}, {75, 4}, {130, 64}}) {
    const Rule rule = [tokens = tokens, block = block](int64_t, int64_t t, int64_t s, int64_t) {
      if (t < tokens) return s <= t;
      const int64_t own = (t - tokens) / block;
      return s < tokens ? s < own * block : (s - tokens) / block == own;
    };
    cases.push_back({fmt::format("TiDAR training, {} by {}", tokens, block),
                     tidar_training_mask(2, tokens, block), rule, 2, 2 * tokens, 2 * tokens});
  }
  const auto prefix = at::tensor({9, 0, 30}, at::kLong);
  const Rule decode = [=](int64_t b, int64_t t, int64_t s, int64_t) {
    constexpr int64_t kSlots = 30, kBlock = 4;
    if (s < kSlots) return s < prefix[b].item<int64_t>();
    const int64_t row = t / kBlock, key = s - kSlots;
    if (row == 0) return key <= t;
    return key < row || key / kBlock == row;
  };
  cases.push_back({"TiDAR decoding", tidar_decode_mask(prefix, 30, 4), decode, 3, 20, 50});
  return cases;
}

std::vector<MaskCase> tree_cases() {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(3);
  std::vector<MaskCase> cases;
  for (const int64_t nodes : {1, 12, 64, 130}) {
    auto parents = at::empty({2, nodes}, at::kLong);
    for (int64_t b = 0; b < 2; ++b)
      for (int64_t n = 0; n < nodes; ++n)
        parents[b][n] = at::randint(-1, n, {1}, generator, at::TensorOptions(at::kLong))[0];
    if (nodes > 1) parents[1][nodes - 1] = nodes - 2;
    const auto prefix = at::tensor({40, 7}, at::kLong);
    const Rule rule = [=](int64_t b, int64_t t, int64_t s, int64_t) {
      constexpr int64_t kSlots = 41;
      if (s < kSlots) return s < prefix[b].item<int64_t>();
      for (int64_t n = t; n >= 0; n = at_entry(parents, b, n))
        if (n == s - kSlots) return true;
      return false;
    };
    cases.push_back(
        {fmt::format("tree of {}", nodes), tree_mask(parents, prefix, 41), rule, 2, nodes, 41 + nodes});
  }
  return cases;
}

std::vector<MaskCase> all_cases() {
  std::vector<MaskCase> cases;
  for (const auto& list : {prefix_cases(), stride_cases(), tidar_cases(), tree_cases()})
    cases.insert(cases.end(), list.begin(), list.end());
  return cases;
}

TensorList inputs_for(const MaskCase& c, int64_t width = 16) {
  return {normal({c.batch, c.queries, c.heads, width}, 1), normal({c.batch, c.keys, c.key_heads, width}, 2),
          normal({c.batch, c.keys, c.key_heads, 24}, 3)};
}

TensorFunction attend(const MaskCase& c) {
  return [=](const TensorList& t) {
    auto options = c.options;
    if (t.size() > 3) options.slopes = t[3];
    const auto r = attention(t[0], t[1], t[2], on_device(c.mask, t[0].device()), options);
    return TensorList{r.out, r.lse};
  };
}

TEST(AttentionMask, MeansWhatItsWordsSay) {
  for (const auto& c : all_cases()) {
    SCOPED_TRACE(c.name);
    auto seen = reference::visible_keys(c.mask, c.batch, c.queries, c.keys, at::kCPU);
    if (seen.dim() == 3) seen = seen.unsqueeze(3).expand({-1, -1, -1, c.heads});
    const auto table = seen.contiguous();
    const bool* cell = table.const_data_ptr<bool>();
    int64_t wrong = 0;
    for (int64_t b = 0; b < c.batch; ++b)
      for (int64_t t = 0; t < c.queries; t += 1 + c.queries / 90)
        for (int64_t s = 0; s < c.keys; ++s)
          for (int64_t h = 0; h < c.heads; ++h)
            wrong += cell[((b * c.queries + t) * c.keys + s) * c.heads + h] != c.rule(b, t, s, h);
    EXPECT_EQ(wrong, 0);
  }
}

TEST(AttentionMask, KernelsMatchTheReference) {
  for (const auto& c : all_cases()) {
    SCOPED_TRACE(c.name);
    expect_matches_reference(attend(c), inputs_for(c), at::kFloat, AttentionBounds().fp32);
    expect_matches_reference(attend(c), inputs_for(c), at::kBFloat16, AttentionBounds().half);
  }
}

TEST(AttentionMask, SameForAnyNumberOfThreads) {
  auto c = tidar_cases().front();
  c.options.softcap = 5;
  auto inputs = inputs_for(c);
  inputs.push_back(normal({c.heads}, 5) * 0.1);
  for (auto& x : inputs) x = x.to(at::kFloat);
  expect_same_for_threads(attend(c), inputs);
}

// Documents in TiDAR's training sequence: as if each had been given alone.
TEST(AttentionMask, TidarDocumentsAreApart) {
  const int64_t tokens = 60, cut = 23, block = 8;
  auto starts = at::zeros({1, tokens}, at::kBool);
  starts[0][0].fill_(true), starts[0][cut].fill_(true);
  const MaskCase packed{"", tidar_training_mask(1, tokens, block, starts), {}, 1, 2 * tokens, 2 * tokens};
  const auto inputs = inputs_for(packed);
  const auto whole = attend(packed)(inputs)[0];
  for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, cut}, {cut, tokens - cut}}) {
    const auto part = [&, first = first, count = count](const at::Tensor& x) {
      return at::cat({x.narrow(1, first, count), x.narrow(1, tokens + first, count)}, 1);
    };
    const MaskCase alone{"", tidar_training_mask(1, count, block), {}, 1, 2 * count, 2 * count};
    EXPECT_LE(
        relative_error(attend(alone)({part(inputs[0]), part(inputs[1]), part(inputs[2])})[0], part(whole)),
        1e-12);
  }
}

// A clean token t reaches the masks of block b only when t < b block, and clean tokens from t on.
TEST(AttentionMask, TidarLeaksNothing) {
  const int64_t tokens = 48, block = 8, changed = 19;
  const MaskCase c{"", tidar_training_mask(1, tokens, block), {}, 1, 2 * tokens, 2 * tokens};
  auto inputs = inputs_for(c);
  for (auto& x : inputs) x = x.to(at::kFloat);
  const auto before = attend(c)(inputs)[0];
  for (const size_t i : {1, 2}) inputs[i] = inputs[i].clone(), inputs[i].select(1, changed).add_(3);
  const auto moved = (attend(c)(inputs)[0] - before).abs().sum({2, 3})[0];
  for (int64_t t = 0; t < 2 * tokens; ++t) {
    const bool may = t < tokens ? t >= changed : changed < (t - tokens) / block * block;
    EXPECT_EQ(moved[t].item<float>() > 0, may) << t;
  }
}

TEST(AttentionMask, HiddenTilesAreSkipped) {
  const auto share = [](const Mask& mask, int64_t tokens, int64_t heads = 1) {
    const auto [visited, all] = internal::visited_tiles(mask, 1, tokens, tokens, heads, heads);
    return static_cast<double>(visited) / static_cast<double>(all);
  };
  EXPECT_EQ(share({.causal = false}, 640), 1);
  EXPECT_DOUBLE_EQ(share({}, 640), 0.55);                    // 55 of 100 tiles
  EXPECT_DOUBLE_EQ(share({.window = 64}, 640), 19.0 / 100);  // two a row but the first
  EXPECT_DOUBLE_EQ(share({.window = 64, .sinks = 3}, 640), 27.0 / 100);
  // Clean half causal, 15 of 25; masks: the clean blocks before, 0 + 1 + 2 + 3 + 4 and one where blocks end inside a
  // tile, and the tile of their own.
  EXPECT_DOUBLE_EQ(share(tidar_training_mask(1, 320, 64), 640), (15 + 10 + 5) / 100.0);
  EXPECT_DOUBLE_EQ(share(tidar_training_mask(1, 320, 16), 640), (15 + 15 + 5) / 100.0);
  // Blocks of one tile: 10 on the diagonal, and of the rows below columns 3 and 7.
  EXPECT_DOUBLE_EQ(share(block_stride_mask(1, 640, 640, 64, 1, 4), 640), (10 + 6 + 2) / 100.0);
  const auto offsets = at::tensor({0, 3}, at::kLong);
  EXPECT_DOUBLE_EQ(share(block_stride_mask(1, 640, 640, 64, 1, 4, 0, offsets), 640, 2),
                   (18 + 10 + 9 + 5 + 1) / 200.0);  // offset 3: columns 0, 4 and 8
}

// What a query sees is in more pieces than the lists of the GPU have room for.
TEST(AttentionMask, ManyPieces) {
  const int64_t keys = 128 * 41;
  MaskCase c{"", {}, {}, 1, 130, keys, 2, 1};
  c.mask.causal = false;
  c.mask.q_segments = at::zeros({1, 130}, at::kLong);
  c.mask.k_segments = at::arange(keys).div(128, "floor").remainder(2).unsqueeze(0);
  expect_matches_reference(attend(c), inputs_for(c), at::kFloat, AttentionBounds().fp32);
  expect_matches_reference(attend(c), inputs_for(c), at::kBFloat16, AttentionBounds().half);
}

TEST(AttentionMask, CappedAndBiasedScores) {
  const std::vector<AttentionCase> cases = {{"causal", 2, 70, 70, 4, 2, 16, 24},
                                            {"decode", 2, 2, 130, 4, 2, 16, 24},
                                            {"window, ring", 1, 90, 130, 2, 1, 16, 16, true, 25, 3, 1, true},
                                            {"cross", 1, 20, 70, 2, 2, 8, 8, false}};
  for (const auto& c : cases)
    for (const double softcap : {0.0, 3.0}) {
      SCOPED_TRACE(fmt::format("{}, cap {}", c.name, softcap));
      MaskCase both{c.name, mask_of(c), {}, c.batch, c.queries, c.keys, c.heads, c.key_heads};
      both.options.softcap = softcap;
      TensorList inputs{normal({c.batch, c.queries, c.heads, c.key_width}, 1) * 2,
                        normal({c.batch, c.keys, c.key_heads, c.key_width}, 2),
                        normal({c.batch, c.keys, c.key_heads, c.value_width}, 3)};
      expect_matches_reference(attend(both), inputs, at::kFloat, AttentionBounds().fp32);
      inputs.push_back(normal({c.heads}, 4).abs() * 0.1);
      expect_matches_reference(attend(both), inputs, at::kFloat, AttentionBounds().fp32);
    }
}

TEST(AttentionMask, ReferenceGradientsOfSlopesAndCap) {
  MaskCase c{"", {}, {}, 1, 4, 5};
  c.options.softcap = 2;
  auto inputs = inputs_for(c, 3);
  inputs.push_back(normal({c.heads}, 4));
  expect_finite_differences(attend(c), inputs);
}

TEST(AttentionMask, ErrorsNameWhatIsWrong) {
  const auto q = at::zeros({1, 4, 2, 8}), k = at::zeros({1, 6, 2, 8});
  const auto text = [&](const Mask& mask, const AttentionOptions& options = {}) {
    return error_text([&] { attention(q, k, k, mask, options); });
  };
  EXPECT_EQ(text({.q_range = at::zeros({1, 4}, at::kLong)}),
            "attention: q_range is [1, 4], expected [1, 4, 2]");
  EXPECT_EQ(text({.q_tree = at::zeros({1, 4, 1}, at::kLong)}),
            "attention: only q_tree is given, expected both or neither");
  EXPECT_EQ(text({.stripes = {.block = 4}}),
            "attention: stripes have block 4 and stride 0, expected a block of 0 or more and a stride of at "
            "least 1");
  EXPECT_EQ(text({}, {.slopes = at::zeros({3})}), "attention: slopes is [3], expected [2]");
  EXPECT_EQ(text({}, {.softcap = -1}), "attention: softcap is -1, expected 0 or more");
  EXPECT_EQ(error_text([] {
              tree_mask(at::tensor({-1, 1}, at::kLong).unsqueeze(0), at::tensor({3}, at::kLong), 3);
            }),
            "tree_mask: node 1 of sequence 0 has the parent 1; expected -1 to 0");
  EXPECT_EQ(error_text([] { tidar_decode_mask(at::tensor({9}, at::kLong), 8, 2); }),
            "tidar_decode_mask: a prefix is outside 0 to 8");
  EXPECT_EQ(error_text([] { block_stride_mask(1, 4, 4, 0, 1, 1); }),
            "block_stride_mask: block is 0, local 1, stride 1 and sinks 0; expected at least 1, 1, 1 and 0");
}

}  // namespace
}  // namespace weft::ops
