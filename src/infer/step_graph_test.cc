// Recorded steps against steps launched one by one and against the whole form; on a GPU, where there is one.
#include "infer/step_graph.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "ops/devices.h"

namespace weft {
namespace {

bool has_gpu() {
  const auto all = devices();
  return std::any_of(all.begin(), all.end(), [](const Device& d) { return d.kind.rfind("cuda", 0) == 0; });
}

// Heads as wide as the kernels for whole tokens take them.
std::unique_ptr<Model> hybrid(at::ScalarType dtype) {
  const auto node = Node::parse(
      "name: hybrid\n"
      "width: 128\n"
      "embedding_std: 1.0\n"
      "vocab: 97\n"
      "layers:\n"
      "  - {mixer: gated_delta_net, heads: 2, value_heads: 4, head_dim: 64, ffn: {swiglu: 192}}\n"
      "  - {mixer: attention, heads: 4, kv_heads: 2, head_dim: 64, window: 9, sinks: 1, qk_norm: true, ffn: "
      "{swiglu: 64}}\n"
      "  - {mixer: attention, heads: 2, ffn: {swiglu: 64}}\n",
      "hybrid.yaml");
  auto model = std::make_unique<Model>(read_options<ModelOptions>(node, "model"));
  model->initialize(5);
  model->to(at::Device(at::kCUDA, 0));
  model->to(dtype);
  model->set_compute_dtype(dtype);
  return model;
}

TEST(StepGraph, GivesWhatStepsGive) {
  if (!has_gpu()) GTEST_SKIP() << "needs a GPU";
  constexpr int64_t kPrompt = 7, kSteps = 30;
  const at::NoGradGuard no_grad;
  for (const auto& [dtype, bound] : {std::pair{at::kFloat, 1e-4}, {at::kBFloat16, 6e-2}}) {
    const auto model = hybrid(dtype);
    const auto ids = (at::arange(kPrompt + kSteps, at::kLong) * 31 % 97).unsqueeze(0).to(model->device());
    const auto whole = model->logits(model->run(ids)).to(at::kFloat);
    auto state = model->initial_state(1);
    model->run(ids.narrow(1, 0, kPrompt), state);
    StepGraph graph(*model, state, kPrompt + kSteps);
    for (int64_t t = kPrompt; t < kPrompt + kSteps; ++t) {
      const auto id = ids.narrow(1, t, 1);
      const auto by_step = model->logits(model->step(id, state)).to(at::kFloat),
                 recorded = graph.step(id).to(at::kFloat), expected = whole.narrow(1, t, 1);
      const double scale = expected.abs().max().item<double>();
      EXPECT_LT((recorded - by_step).abs().max().item<double>(), 0.1 * bound * scale)
          << dtype << ", token " << t;
      EXPECT_LT((recorded - expected).abs().max().item<double>(), bound * scale) << dtype << ", token " << t;
    }
    EXPECT_TRUE(graph.full());
    const auto tensors = state.layers.tensors();
    for (const auto& [path, tensor] : graph.state().layers.tensors())
      EXPECT_LE((tensor.to(at::kFloat) - tensors.at(path).to(at::kFloat)).abs().max().item<double>(), bound)
          << path;
  }
}

}  // namespace
}  // namespace weft
