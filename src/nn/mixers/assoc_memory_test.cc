#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include <gtest/gtest.h>

#include "nn/model.h"

namespace weft {
namespace {

std::unique_ptr<SequenceMixer> mixer_of(const std::string& options, int64_t width) {
  const auto node = Node::parse("{mixer: assoc_memory" + options + "}", "test");
  auto mixer = make_mixer(node, Site{.width = width});
  mixer->initialize(3);
  mixer->to(at::kDouble);
  return mixer;
}

at::Tensor run(SequenceMixer& mixer, const at::Tensor& x) {
  State state = mixer.initial_state(x.size(0), x.options());
  return mixer.run(x, state, Context::at_positions(at::zeros({x.size(0)}, at::kLong), x.size(1)));
}

at::Tensor random(at::IntArrayRef sizes, uint64_t seed = 1) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  return at::randn(sizes, generator, at::TensorOptions().dtype(at::kDouble));
}

at::Tensor parameter(const Module& module, const std::string& name) {
  for (const auto& [known, parameter] : module.parameters())
    if (known == name) return parameter->value;
  ADD_FAILURE() << "no parameter " << name;
  return {};
}

std::unique_ptr<Model> model_of(int64_t vocab, int64_t width, int64_t slots, int64_t layers) {
  const auto node = Node::parse(
      fmt::format(
          "width: {}\nnorm: layer\ndefaults: {{norm: layer}}\nlayers: [{{repeat: {}, pattern: [{{mixer: "
          "assoc_memory, slots: {}, ffn: {{gelu: 0}}}}]}}]",
          width, layers, slots),
      "test");
  auto options = read_options<ModelOptions>(node, "model");
  options.vocab = vocab;
  return std::make_unique<Model>(options);
}

TEST(AssocMemory, ParameterCountOfThePaper) {
  // 22,599,680 with the paper's learned positions, one vector for each of 256 places.
  EXPECT_EQ(model_of(10000, 512, 512, 6)->parameter_count() + 256 * 512, 22599680);
}

TEST(AssocMemory, SixLayersSeeThirteenTokens) {
  const at::NoGradGuard no_grad;
  auto model = model_of(32, 16, 8, 6);
  model->initialize(5);
  for (const auto& [name, parameter] : model->parameters())
    if (name == "embedding.weight") parameter->value.mul_(50);  // differences that survive six layers
  const int64_t last = 19;
  const auto ids = at::arange(last + 1).unsqueeze(0).remainder(32);
  const auto logits = [&](const at::Tensor& tokens) {
    return model->logits(model->run(tokens).select(1, last));
  };
  const auto expected = logits(ids);
  for (int64_t back = 0; back <= last; ++back) {
    auto changed = ids.clone();
    changed[0][last - back] = 31;
    EXPECT_EQ(at::equal(logits(changed), expected), back >= 13) << back << " tokens back";
  }
}

TEST(AssocMemory, LookUpMixesNoTokens) {
  auto mixer = mixer_of(", slots: 5, fusion: global", 4);
  const auto x = random({1, 6, 4}).requires_grad_(true);
  const auto y = run(*mixer, x);
  for (int64_t t = 0; t < 6; ++t) {
    const auto gradient = torch::autograd::grad({y[0][t].sum()}, {x}, {}, true)[0][0];
    for (int64_t s = 0; s < 6; ++s)
      EXPECT_EQ(gradient[s].abs().max().item<double>() > 0, s == t) << "token " << s << " in output " << t;
  }
}

TEST(AssocMemory, OneSlotIsAConstant) {
  const at::NoGradGuard no_grad;
  auto mixer = mixer_of(", slots: 1, fusion: global", 4);
  const auto y = run(*mixer, random({2, 5, 4}));
  EXPECT_TRUE(at::allclose(y, parameter(*mixer, "memory")[0].expand({2, 5, 4}), 0, 1e-14));
}

TEST(AssocMemory, LookUpIsAttentionToTheSlots) {
  const at::NoGradGuard no_grad;
  for (const bool values : {false, true}) {
    auto mixer = mixer_of(
        values ? ", slots: 7, fusion: global, values: true, temperature: 2.5" : ", slots: 7, fusion: global",
        8);
    const auto x = random({2, 5, 8});
    const auto keys = parameter(*mixer, "memory"), read = values ? parameter(*mixer, "values") : keys;
    const double temperature = values ? 2.5 : 1.0;
    const auto y = run(*mixer, x);
    for (int64_t row = 0; row < 2; ++row)
      for (int64_t t = 0; t < 5; ++t) {
        auto sum = at::zeros({8}, at::kDouble);
        double weights = 0;
        for (int64_t m = 0; m < 7; ++m) {
          const double weight = std::exp((x[row][t] * keys[m]).sum().item<double>() / temperature);
          sum += weight * read[m];
          weights += weight;
        }
        EXPECT_TRUE(at::allclose(y[row][t], sum / weights, 0, 1e-12));
      }
  }
}

TEST(AssocMemory, PathsAddUp) {
  const at::NoGradGuard no_grad;
  const auto x = random({2, 9, 6});
  auto both = mixer_of(", slots: 5, fusion: sum", 6), local = mixer_of(", slots: 5, fusion: local", 6),
       global = mixer_of(", slots: 5, fusion: global", 6), gated = mixer_of(", slots: 5", 6);
  const auto l = run(*local, x), g = run(*global, x);  // equal seeds and names: equal weights
  EXPECT_TRUE(at::allclose(run(*both, x), l + g, 0, 1e-14));
  const auto weight = parameter(*gated, "gate.weight"), bias = parameter(*gated, "gate.bias");
  const auto open = [&](int64_t half) {
    return 1 / (1 + (-(at::matmul(x, weight.slice(0, 6 * half, 6 * half + 6).t()) +
                       bias.slice(0, 6 * half, 6 * half + 6)))
                        .exp());
  };
  EXPECT_TRUE(at::allclose(run(*gated, x), open(0) * l + open(1) * g, 0, 1e-13));
  bias.fill_(-1e4);  // both gates shut
  EXPECT_EQ(run(*gated, x).abs().max().item<double>(), 0);
}

TEST(AssocMemory, ConvolutionReadsTheLastTokens) {
  const at::NoGradGuard no_grad;
  auto mixer = mixer_of(", slots: 5, fusion: local", 3);
  const auto x = random({1, 6, 3});
  const auto weight = parameter(*mixer, "conv.weight"), bias = parameter(*mixer, "conv.bias");
  const auto y = run(*mixer, x);
  for (int64_t t = 0; t < 6; ++t) {
    auto expected = bias.clone();
    for (int64_t j = 0; j < 3; ++j)
      if (t - 2 + j >= 0) expected += weight.select(1, j) * x[0][t - 2 + j];
    EXPECT_TRUE(at::allclose(y[0][t], expected, 0, 1e-14)) << "token " << t;
  }
}

}  // namespace
}  // namespace weft
