// The ring against plain steps: whatever is appended, taken back and folded, outputs and state are those of the
// tokens that are left. Run for the reference and every kernel of the machine.
#include "ops/linear_attention/ring.h"

#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "ops/kernel_choice.h"
#include "ops/linear_attention/linear_attention_cases.h"
#include "ops/reference_check.h"

namespace weft::ops {
namespace {

std::vector<Kernel> kernels_to_test() {
  auto list = runnable_kernels();
  list.push_back(Kernel::reference);
  return list;
}

class LinearAttentionRingTest : public testing::TestWithParam<Kernel> {
 private:
  ForceKernel force_{GetParam()};
};

INSTANTIATE_TEST_SUITE_P(Kernels, LinearAttentionRingTest, testing::ValuesIn(kernels_to_test()),
                         [](const auto& info) { return std::string(kernel_name(info.param)); });

// On the device of the kernel under test.
LinearAttention inputs_of(const LinearAttentionCase& c, at::ScalarType type, uint64_t seed = 1) {
  const auto kernel = forced_kernel();
  return on_device(linear_attention_inputs(c, type, seed), kernel ? device_of(*kernel) : at::kCPU);
}

// Every decay with every erase and the read before the write, odd and uneven widths, shared keys.
std::vector<LinearAttentionCase> ring_cases() {
  using Decay = LinearAttentionCase::Decay;
  std::vector<LinearAttentionCase> cases;
  for (const auto decay : {Decay::none, Decay::constant, Decay::scalar, Decay::vector})
    for (const char* form : {"none", "delta", "low rank", "bonus"}) {
      const std::string name = form;
      cases.push_back({.name = name + " " + std::to_string(static_cast<int>(decay)),
                       .batch = 3,
                       .heads = 4,
                       .key_heads = 2,
                       .key_width = 19,
                       .value_width = 37,
                       .decay = decay,
                       .erase = name == "delta",
                       .write = decay == Decay::scalar,
                       .bonus = name == "bonus",
                       .state = true,
                       .erase_heads = name == "low rank" ? 4 : 0});
    }
  const std::pair<int64_t, int64_t> widths[] = {{16, 48}, {100, 256}, {256, 16}, {1, 1}};
  for (const auto& [key_width, value_width] : widths)
    cases.push_back({.name = "gdn",
                     .batch = 2,
                     .heads = 2,
                     .key_heads = 1,
                     .key_width = key_width,
                     .value_width = value_width,
                     .decay = Decay::scalar,
                     .erase = true,
                     .state = true});
  return cases;
}

// The plain state of every sequence after each of its tokens.
struct History {
  std::vector<std::vector<at::Tensor>> states;  // of each sequence, [H, K, V]

  explicit History(const at::Tensor& state) {
    for (const auto& s : state.unbind()) states.push_back({s.clone()});
  }
  at::Tensor now() const {
    std::vector<at::Tensor> list;
    for (const auto& s : states) list.push_back(s.back());
    return at::stack(list);
  }
  at::Tensor step(LinearAttention token) {
    token.initial_state = now();
    const auto out = linear_attention_step(token);
    const auto list = out.state.unbind();
    for (size_t b = 0; b < states.size(); ++b) states[b].push_back(list[b].clone());
    return out.y;
  }
  void take_back(size_t b, int64_t count) { states[b].resize(states[b].size() - static_cast<size_t>(count)); }
};

LinearAttention token_of(const LinearAttentionCase& c, const LinearAttention& form, uint64_t seed,
                         at::ScalarType type = at::kFloat) {
  auto token = inputs_of(c, type, seed);
  token.initial_state = at::Tensor();
  if (c.decay == LinearAttentionCase::Decay::constant) token.log_decay = form.log_decay;
  return token;
}

at::Tensor folded_state(LinearAttentionRing ring) {
  for (auto* x : {&ring.state, &ring.length, &ring.keys, &ring.values, &ring.decays}) *x = x->clone();
  linear_attention_ring_fold(ring);
  return ring.state;
}

TEST_P(LinearAttentionRingTest, IsTheStep) {
  for (const auto& c : ring_cases())
    for (const int64_t keep : {0, 2}) {
      const auto form = inputs_of(c, at::kFloat);
      History plain(form.initial_state);
      auto start = form;
      start.initial_state = form.initial_state.clone();
      auto ring = linear_attention_ring(start, 5);
      ring.keep = keep;
      for (uint64_t t = 0; t < 12; ++t) {
        const auto token = token_of(c, form, 100 + t);
        EXPECT_LE(relative_error(linear_attention_ring_step(token, ring), plain.step(token)), 1e-5)
            << c.name << " token " << t;
      }
      EXPECT_LE(relative_error(folded_state(ring), plain.now()), 1e-5) << c.name;
    }
}

TEST_P(LinearAttentionRingTest, StateIsOnlyReadUntilTheRingIsFull) {
  for (const auto& c : ring_cases()) {
    const auto form = inputs_of(c, at::kFloat);
    const auto before = form.initial_state.clone();
    auto ring = linear_attention_ring(form, 4);
    ASSERT_EQ(ring.state.data_ptr(), form.initial_state.data_ptr());
    for (uint64_t t = 0; t < 4; ++t) linear_attention_ring_step(token_of(c, form, t), ring);
    EXPECT_TRUE(at::equal(ring.state, before)) << c.name;
    linear_attention_ring_step(token_of(c, form, 9), ring);
    EXPECT_FALSE(at::equal(ring.state, before)) << c.name;
    EXPECT_TRUE(at::equal(ring.length, at::ones_like(ring.length)));
  }
}

// Random tokens, roll-backs of different length in every sequence, folds.
TEST_P(LinearAttentionRingTest, AnySequenceOfCalls) {
  for (const auto& c : ring_cases()) {
    const auto form = inputs_of(c, at::kFloat);
    History plain(form.initial_state);
    auto start = form;
    start.initial_state = form.initial_state.clone();
    auto ring = linear_attention_ring(start, 6);
    ring.keep = 3;
    for (uint64_t t = 0; t < 40; ++t) {
      const auto token = token_of(c, form, 1000 + t);
      at::manual_seed(t);
      const int64_t what = at::randint(10, {1}).item<int64_t>();
      if (what == 0) linear_attention_ring_fold(ring);
      if (what == 1 || what == 2) {
        auto length = ring.length.clone();
        for (int64_t b = 0; b < c.batch; ++b) {
          const int64_t has = length[b].item<int64_t>(), back = at::randint(has + 1, {1}).item<int64_t>();
          length[b].fill_(has - back);
          plain.take_back(static_cast<size_t>(b), back);
        }
        linear_attention_ring_roll_back(ring, length);
      }
      EXPECT_LE(relative_error(linear_attention_ring_step(token, ring), plain.step(token)), 1e-5)
          << c.name << " token " << t;
    }
    EXPECT_LE(relative_error(folded_state(ring), plain.now()), 1e-5) << c.name;
  }
}

// Taking tokens back is as if they had never come: to the bit, while no fold is between.
TEST_P(LinearAttentionRingTest, TakenBackIsNeverAppended) {
  for (const auto& c : ring_cases()) {
    const auto form = inputs_of(c, at::kFloat);
    auto ring = linear_attention_ring(form), other = ring;
    for (auto* x : {&other.length, &other.keys, &other.values, &other.decays}) *x = x->clone();
    for (uint64_t t = 0; t < 3; ++t)
      for (auto* r : {&ring, &other}) linear_attention_ring_step(token_of(c, form, t), *r);
    for (uint64_t t = 50; t < 54; ++t) linear_attention_ring_step(token_of(c, form, t), ring);
    linear_attention_ring_roll_back(ring, at::full({c.batch}, 3, at::kLong));
    const auto token = token_of(c, form, 7);
    EXPECT_TRUE(at::equal(linear_attention_ring_step(token, ring), linear_attention_ring_step(token, other)));
  }
}

TEST_P(LinearAttentionRingTest, DocumentStartDropsTheRing) {
  for (const auto& c : ring_cases()) {
    const auto form = inputs_of(c, at::kFloat);
    auto ring = linear_attention_ring(form, 4);
    for (uint64_t t = 0; t < 4; ++t) linear_attention_ring_step(token_of(c, form, t), ring);
    auto token = token_of(c, form, 7);
    token.starts = at::zeros({c.batch, 1}, token.v.options().dtype(at::kBool));
    token.starts[1].fill_(true);
    auto kept = folded_state(ring);
    kept[1].zero_();
    History plain(kept);
    const auto found = linear_attention_ring_step(token, ring);
    token.starts = at::Tensor();
    EXPECT_LE(relative_error(found, plain.step(token)), 1e-5) << c.name;
    EXPECT_EQ(ring.length[1].item<int64_t>(), 1);
  }
}

TEST_P(LinearAttentionRingTest, StrongDecayForgets) {
  auto c = ring_cases().front();
  c.decay = LinearAttentionCase::Decay::vector;
  const auto form = inputs_of(c, at::kFloat);
  History plain(form.initial_state);
  auto start = form;
  start.initial_state = form.initial_state.clone();
  auto ring = linear_attention_ring(start, 8);
  for (uint64_t t = 0; t < 20; ++t) {
    auto token = token_of(c, form, t);
    token.log_decay = t % 5 == 4 ? at::full_like(token.log_decay, -INFINITY) : token.log_decay * 300;
    EXPECT_LE(relative_error(linear_attention_ring_step(token, ring), plain.step(token)), 1e-5);
  }
}

TEST_P(LinearAttentionRingTest, LowPrecision) {
  const auto c = ring_cases()[9];
  for (const auto type : {at::kBFloat16, at::kHalf}) {
    const auto form = inputs_of(c, type);
    History plain(form.initial_state.to(at::kDouble));
    auto ring = linear_attention_ring(form, 3);
    for (uint64_t t = 0; t < 7; ++t) {
      const auto token = token_of(c, form, t, type);
      auto wide = token;
      for (auto* x : {&wide.q, &wide.k, &wide.v, &wide.log_decay, &wide.beta, &wide.write, &wide.erase_read,
                      &wide.erase_write})
        if (x->defined()) *x = x->to(at::kDouble);
      const auto y = linear_attention_ring_step(token, ring);
      EXPECT_EQ(y.scalar_type(), type);
      const ForceKernel reference(Kernel::reference);
      EXPECT_LE(relative_error(y, plain.step(wide)), linear_attention_bounds(type).y);
    }
  }
}

TEST(LinearAttentionRing, Errors) {
  const auto c = ring_cases()[1];
  const auto form = linear_attention_inputs(c, at::kFloat);
  auto ring = linear_attention_ring(form, 2);
  auto token = form;
  const auto step = [&] { linear_attention_ring_step(token, ring); };
  EXPECT_EQ(error_text(step), "linear_attention_ring_step: initial_state is given; the state is the ring's");
  token.initial_state = at::Tensor();
  token.log_decay = at::zeros({3, 1, 4});
  EXPECT_EQ(
      error_text(step),
      "linear_attention_ring_step: the ring has 1 rows and 0 decays for a token, this one has 1 and 1; the "
      "form must not change");
  EXPECT_EQ(error_text([&] { linear_attention_ring_roll_back(ring, at::ones({3}, at::kLong)); }),
            "linear_attention_ring_roll_back: length of sequence 0 is 1, expected 0 to 0");
  ring.keep = 2;
  EXPECT_EQ(error_text([&] { linear_attention_ring_fold(ring); }),
            "linear_attention_ring_fold: keep is 2, expected 0 to 1");
  for (const char* name : {"weft::linear_attention_ring_step", "weft::linear_attention_ring_fold"})
    EXPECT_TRUE(c10::Dispatcher::singleton().findSchema({name, ""}).has_value());
}

}  // namespace
}  // namespace weft::ops
