// Layers beside the stream, and parameters that several layers share.
#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <set>

#include "base/error.h"
#include "nn/model.h"

namespace weft {
namespace {

std::unique_ptr<Model> model_of(const std::string& layers) {
  ModelOptions options;
  options.vocab = 11;
  options.width = 8;
  options.layers = Node::parse(layers, "test.yaml");
  auto model = std::make_unique<Model>(options);
  model->initialize(3);
  model->to(at::kDouble);
  model->set_compute_dtype(at::kDouble);
  return model;
}

// Two uses of one block of attention and MLP over stream and embedding, with adapters of their own.
const char* const kShared = R"(
- {repeat: 2, pattern: [
    {mixer: attention, heads: 2, head_dim: 4, adapter_rank: 2, concat: embedding, ffn: {mlp: {hidden: 6, adapter_rank: 3}}, skip_scale: 0, share: block, to: side},
    {ffn: {linear: {}}, norm: none, skip_scale: 0, from: side, to: side},
    {mixer: mamba2, heads: 2, head_dim: 4, states: 3, add: side}]}
)";

at::Tensor ids() { return at::arange(14).remainder(11).view({2, 7}); }

std::string message_of(const std::string& layers) {
  try {
    model_of(layers);
  } catch (const InputError& error) {
    return error.what();
  }
  return "no error";
}

TEST(Sharing, SharedParametersAreListedOnceAndAdaptersForEachUse) {
  const auto model = model_of(kShared);
  std::set<std::string> names;
  for (const auto& [name, parameter] : model->parameters()) names.insert(name);
  EXPECT_EQ(names.size(), model->parameters().size());
  EXPECT_TRUE(names.count("stack.layers.0.mixer.q.weight"));
  EXPECT_FALSE(names.count("stack.layers.3.mixer.q.weight"));
  EXPECT_FALSE(names.count("stack.layers.3.mixer_norm.weight"));
  EXPECT_FALSE(names.count("stack.layers.3.ffn.up.weight"));
  for (const char* layer : {"stack.layers.0.", "stack.layers.3."})
    for (const char* own :
         {"mixer.q.adapter_down.weight", "ffn.adapter_down.weight", "ffn.gate_adapter_up.weight"})
      EXPECT_TRUE(names.count(std::string(layer) + own)) << layer << own;
}

TEST(Sharing, SharedWeightsCountForEachUseInFlops) {
  const auto model = model_of(kShared);
  int64_t listed = 0;
  for (const auto& [name, parameter] : model->parameters())
    if (parameter->rules.role == ParameterRules::Role::matrix) listed += parameter->value.numel();
  // q, k, v [8, 16], out [8, 8], gate, up, down of the MLP [6, 8]
  EXPECT_EQ(model->matrix_weights() - listed, 3 * 128 + 64 + 3 * 48);
}

TEST(Sharing, StepsAndChunksAgreeWithTheWhole) {
  const at::NoGradGuard no_grad;
  const auto model = model_of(kShared);
  const auto whole = model->run(ids());
  auto state = model->initial_state(2);
  std::vector<at::Tensor> parts{model->run(ids().slice(1, 0, 3), state)};
  for (int64_t t = 3; t < 7; ++t) parts.push_back(model->step(ids().slice(1, t, t + 1), state));
  EXPECT_TRUE(at::allclose(at::cat(parts, 1), whole, 1e-10, 1e-10));
}

TEST(Sharing, RecomputationGivesTheSameGradients) {
  const auto gradients = [](bool recompute) {
    const auto model = model_of(kShared);
    model->requires_grad(true);
    model->set_recompute(recompute);
    model->run(ids()).square().sum().backward();
    std::vector<at::Tensor> all;
    for (const auto& [name, parameter] : model->parameters()) all.push_back(parameter->value.grad());
    return all;
  };
  const auto plain = gradients(false), recomputed = gradients(true);
  ASSERT_EQ(plain.size(), recomputed.size());
  for (size_t i = 0; i < plain.size(); ++i)
    if (plain[i].defined()) {
      EXPECT_TRUE(at::allclose(plain[i], recomputed[i], 1e-9, 1e-11)) << i;
    }
}

TEST(Sharing, ErrorsNameTheLayerAndWhatIsExpected) {
  EXPECT_NE(
      message_of(
          "[{mixer: attention, heads: 2, share: a}, {mixer: attention, heads: 2, kv_heads: 1, share: a}]")
          .find("both need the same options"),
      std::string::npos);
  EXPECT_NE(message_of("[{mixer: mamba, concat: embedding}]").find("takes inputs of the model's width only"),
            std::string::npos);
  EXPECT_NE(message_of("[{mixer: mamba, add: nothing}]").find("no layer above exports it"),
            std::string::npos);
}

}  // namespace
}  // namespace weft
