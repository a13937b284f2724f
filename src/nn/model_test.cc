#include "nn/model.h"

#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "ops/loss/loss.h"

namespace weft {
namespace {

// Exports memory and keys, imports both, mixes recurrent and attention layers: a small SambaY with a parallel
// layer.
constexpr const char* kHybrid = R"(
width: 16
vocab: 11
layers:
  - {mixer: mamba, states: 4, ffn: {swiglu: 24}}
  - {mixer: attention, heads: 2, window: 3, ffn: {swiglu: 24}}
  - {mixer: mamba, states: 4, export: {memory: m}, ffn: {gelu: 24}}
  - {mixer: attention, heads: 2, rope: 0, export: {kv: shared}, norm_placement: sandwich, ffn: {swiglu: 24}}
  - {mixer: gmu, import: {memory: m}, ffn: {swiglu: 24}}
  - {mixer: cross_attention, heads: 2, rope: 0, import: {kv: shared}, norm_placement: post, ffn: {swiglu: 24}}
  - {mixer: parallel, branches: [{mixer: attention, heads: 2}, {mixer: gated_delta_net, heads: 1, head_dim: 8}]}
)";

// Streams side by side; blocks that later layers attend to, some of them in a loop with messages between its passes.
constexpr const char* kHyperConnections = R"(
width: 16
vocab: 11
norm: none
residual: {hyper_connections: {streams: 3, rank: 4}}
layers:
  - {mixer: attention, heads: 2, norm: none, ffn: {swiglu: 24}}
  - {mixer: mamba, states: 4, export: {memory: m}}
  - {mixer: gmu, import: {memory: m}, norm: none, ffn: {swiglu: 24}}
)";
constexpr const char* kLoop = R"(
width: 16
vocab: 11
residual: {attention: {block: 2, message_rank: 4}}
loop: {begin: 2, end: 4, passes: 3}
layers:
  - {mixer: attention, heads: 2, ffn: {swiglu: 24}}
  - {mixer: short_conv, ffn: {gelu: 24}}
  - {mixer: attention, heads: 2, ffn: {swiglu: 24}}
  - {mixer: mamba, states: 4, ffn: {swiglu: 24}}
  - {mixer: attention, heads: 2}
)";

std::unique_ptr<Model> make(const std::string& yaml, uint64_t seed = 3, at::ScalarType dtype = at::kDouble) {
  auto model = std::make_unique<Model>(read_options<ModelOptions>(Node::parse(yaml, "model.yaml"), "model"));
  model->initialize(seed);
  model->to(dtype);
  model->set_compute_dtype(dtype);
  return model;
}

at::Tensor ids(int64_t batch, int64_t tokens) {
  return (at::arange(batch * tokens, at::kLong) * 7919 % 11).view({batch, tokens});
}

double difference(const at::Tensor& a, const at::Tensor& b) { return (a - b).abs().max().item<double>(); }

TEST(Model, StepsChunksAndWholeAgree) {
  const at::NoGradGuard no_grad;
  const auto model = make(kHybrid);
  const auto tokens = ids(2, 9);
  const auto whole = model->run(tokens);
  auto state = model->initial_state(2);
  std::vector<at::Tensor> parts{model->run(tokens.slice(1, 0, 4), state)};
  for (int64_t t = 4; t < 9; ++t) parts.push_back(model->step(tokens.slice(1, t, t + 1), state));
  EXPECT_LT(difference(at::cat(parts, 1), whole), 1e-12);
  EXPECT_EQ(state.position[1].item<int64_t>(), 9);
}

TEST(Model, CommitLeavesWhatTheKeptTokensWouldHave) {
  const at::NoGradGuard no_grad;
  const auto model = make(kHybrid);
  const auto tokens = ids(2, 8), next = ids(2, 3);
  auto state = model->initial_state(2);
  model->run(tokens.slice(1, 0, 3), state);
  Draft draft;
  model->tentative(tokens.slice(1, 3), state, draft);
  model->commit(at::tensor({2, 4}, at::kLong), state, draft);
  const auto continued = model->run(next, state);
  for (int64_t row = 0; row < 2; ++row) {
    auto alone = model->initial_state(1);
    model->run(tokens.slice(0, row, row + 1).slice(1, 0, row == 0 ? 5 : 7), alone);
    EXPECT_LT(difference(continued.slice(0, row, row + 1), model->run(next.slice(0, row, row + 1), alone)),
              1e-12);
  }
}

TEST(Model, RecomputationChangesNoGradient) {
  const auto gradients = [&](const char* description, at::ScalarType dtype, bool recompute) {
    const auto model = make(description, 3, dtype);
    model->requires_grad(true);
    model->set_recompute(recompute);
    const auto tokens = ids(2, 12);
    auto starts = at::zeros({2, 12}, at::kBool);
    starts.select(1, 5).fill_(true);
    model->losses(tokens, tokens.roll({-1}, {1}), starts).sum().backward();
    std::vector<at::Tensor> all;
    for (const auto& [name, parameter] : model->parameters()) {
      EXPECT_TRUE(parameter->value.grad().defined()) << name;
      all.push_back(parameter->value.grad().clone());
    }
    return all;
  };
  const auto plain = gradients(kHybrid, at::kFloat, false), again = gradients(kHybrid, at::kFloat, true);
  for (size_t i = 0; i < plain.size(); ++i) EXPECT_TRUE(at::equal(plain[i], again[i])) << i;
  // What is read several times collects its gradient in another order.
  for (const char* description : {kHyperConnections, kLoop}) {
    const auto all = gradients(description, at::kDouble, false),
               parts = gradients(description, at::kDouble, true);
    for (size_t i = 0; i < all.size(); ++i) EXPECT_LT(difference(all[i], parts[i]), 1e-12) << i;
  }
}

TEST(Model, PackedDocumentsDoNotSeeEachOther) {
  const at::NoGradGuard no_grad;
  const auto model = make(kHybrid);
  const auto tokens = ids(1, 10);
  auto starts = at::zeros({1, 10}, at::kBool);
  starts.select(1, 4).fill_(true);
  const auto packed = model->run(tokens, starts);
  EXPECT_LT(difference(packed.slice(1, 0, 4), model->run(tokens.slice(1, 0, 4))), 1e-12);
  EXPECT_LT(difference(packed.slice(1, 4), model->run(tokens.slice(1, 4))), 1e-12);
}

TEST(Model, EveryPassOfALoopHasAState) {
  const at::NoGradGuard no_grad;
  const auto model = make(kLoop);
  EXPECT_EQ(model->initial_state(1).layers.children().size(), 5u + 2u * 2u);
  const auto tokens = ids(2, 9);
  auto state = model->initial_state(2);
  std::vector<at::Tensor> parts{model->run(tokens.slice(1, 0, 4), state)};
  for (int64_t t = 4; t < 9; ++t) parts.push_back(model->step(tokens.slice(1, t, t + 1), state));
  EXPECT_LT(difference(at::cat(parts, 1), model->run(tokens)), 1e-12);
}

class ModelDescription : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(All, ModelDescription, testing::Values(kHybrid, kHyperConnections, kLoop));

TEST_P(ModelDescription, MakesTheSameModel) {
  const at::NoGradGuard no_grad;
  const auto model = make(GetParam());
  const auto again = make(model->describe().dump());
  const auto a = model->parameters(), b = again->parameters();
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].name, b[i].name);
    EXPECT_TRUE(at::equal(a[i].parameter->value, b[i].parameter->value)) << a[i].name;
  }
  EXPECT_EQ(model->describe().dump(), again->describe().dump());
}

TEST(Model, SeedAndNameAloneDecideTheParameters) {
  const auto a = make(kHybrid, 5), b = make(kHybrid, 5), c = make(kHybrid, 6);
  EXPECT_TRUE(at::equal(a->parameters()[0].parameter->value, b->parameters()[0].parameter->value));
  EXPECT_FALSE(at::equal(a->parameters()[0].parameter->value, c->parameters()[0].parameter->value));
}

TEST(Model, WideResidualKeepsBf16Close) {
  const at::NoGradGuard no_grad;
  const auto exact = make(kHybrid);
  const auto narrow = make(std::string(kHybrid) + "fp32_residual: true\n", 3, at::kFloat);
  narrow->set_compute_dtype(at::kBFloat16);  // fp32 master weights beneath
  const auto y = narrow->run(ids(2, 9));
  EXPECT_EQ(y.scalar_type(), at::kBFloat16);
  EXPECT_LT(difference(y.to(at::kDouble), exact->run(ids(2, 9))), 0.1);
}

TEST(Model, RefusesWhatItCannotDo) {
  const auto message_of = [](const std::string& yaml) -> std::string {
    try {
      make(yaml);
    } catch (const InputError& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_NE(message_of("{width: 8, vocab: 4, layers: [{mixer: bidirectional, inner: {mixer: short_conv}}]}")
                .find("looks ahead"),
            std::string::npos);
  EXPECT_NE(message_of("{vocab: 4, layers: [{mixer: short_conv}]}").find("model.width is missing"),
            std::string::npos);
  EXPECT_NE(message_of("{width: 8, vocab: 4, layrs: []}").find("did you mean 'layers'?"), std::string::npos);
}

// A gated memory unit over a Mamba layer's own read-out, with the gate and output weights of that layer, is
// that layer. (systems note on SambaY: GMU is a Mamba block that shares the scan.)
TEST(Gmu, IsAMambaBlockWithTheScanShared) {
  const at::NoGradGuard no_grad;
  const auto node = [](const char* text) { return Node::parse(text, "test"); };
  const Site site{.width = 8};
  const auto mamba = make_mixer(node("{mixer: mamba, inner: 12, states: 3}"), site);
  const auto gmu = make_mixer(node("{mixer: gmu, memory: 12}"), site);
  mamba->initialize(1);
  mamba->to(at::kDouble);
  gmu->to(at::kDouble);
  const auto find = [](Module& module, const std::string& wanted) -> at::Tensor& {
    for (const auto& [name, parameter] : module.parameters())
      if (name == wanted) return parameter->value;
    throw Bug(wanted);
  };
  find(*gmu, "gate.weight").copy_(find(*mamba, "in.weight").slice(0, 12));
  find(*gmu, "out.weight").copy_(find(*mamba, "out.weight"));
  const auto x = at::sin(at::arange(2 * 5 * 8, at::kDouble)).view({2, 5, 8});
  auto context = Context::at_positions(at::zeros({2}, at::kLong), 5);
  Strands exported{{"memory", {}}};
  context.exports = &exported;
  State state = mamba->initial_state(2, x.options()), none;
  const auto expected = mamba->run(x, state, context);
  context.exports = nullptr;
  context.imports = exported;
  EXPECT_LT(difference(gmu->run(x, none, context), expected), 1e-14);
}

// The parameter count of the published 130M model, from its shapes (state-spaces/mamba README: 24 layers,
// width 768).
TEST(Mamba, HasThePublishedNumberOfParameters) {
  const auto model = Model(read_options<ModelOptions>(
      Node::parse("{width: 768, vocab: 50280, layers: [{repeat: 24, pattern: [{mixer: mamba}]}]}", "test"),
      "model"));
  const int64_t layer =
      2 * 768 * 1536 + 1536 * 5 + 1536 * 80 + 48 * 1536 + 1536 + 1536 * 16 + 1536 + 1536 * 768 + 768;
  EXPECT_EQ(model.parameter_count(), 24 * layer + 50280 * 768 + 768);
}

// Without positions, attention in both directions treats the tokens of a call as a set.
TEST(Attention, APrefixIsSeenInBothDirections) {
  const at::NoGradGuard no_grad;
  const auto mixer =
      make_mixer(Node::parse("{mixer: attention, heads: 2, rope: 0}", "test"), Site{.width = 8});
  mixer->initialize(1);
  mixer->to(at::kDouble);
  const auto x = at::sin(at::arange(2 * 5 * 8, at::kDouble)).view({2, 5, 8});
  const auto run = [&](const at::Tensor& tokens, bool causal) {
    auto context = Context::at_positions(at::zeros({2}, at::kLong), 5);
    context.causal = causal;
    State state = mixer->initial_state(2, x.options());
    return mixer->run(tokens, state, context);
  };
  EXPECT_LT(difference(run(x.flip(1), false).flip(1), run(x, false)), 1e-13);
  EXPECT_GT(difference(run(x.flip(1), true).flip(1), run(x, true)), 1e-3);
  EXPECT_LT(difference(run(x, false).slice(1, 4), run(x, true).slice(1, 4)), 1e-13);
}

TEST(Attention, AWindowAsLongAsTheSequenceIsNone) {
  const at::NoGradGuard no_grad;
  const auto full = make("{width: 16, vocab: 11, layers: [{mixer: attention, heads: 2}]}");
  const auto windowed = make("{width: 16, vocab: 11, layers: [{mixer: attention, heads: 2, window: 9}]}");
  EXPECT_LT(difference(full->run(ids(2, 9)), windowed->run(ids(2, 9))), 1e-13);
}

}  // namespace
}  // namespace weft
