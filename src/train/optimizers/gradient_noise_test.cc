#include "train/optimizers/gradient_noise.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/scratch_folder.h"
#include "ops/recurrence_check.h"
#include "train/optimizers/sgd.h"

namespace weft {
namespace {

class Net : public Module {
 public:
  explicit Net(int64_t size = 30) {
    parameter("matrix", {size, 8}, init::normal(1));
    vector_parameter("norm", {7}, init::constant(1));
    initialize(3);
    requires_grad(true);
  }
};

void set_gradients(Module& net, uint64_t seed) {
  auto random = at::make_generator<at::CPUGeneratorImpl>(seed);
  for (auto& [name, parameter] : net.parameters())
    parameter->value.mutable_grad() = at::randn(parameter->value.sizes(), random);
}

void zero_gradients(Module& net) {
  for (auto& [name, parameter] : net.parameters())
    parameter->value.mutable_grad() = at::zeros_like(parameter->value).detach();
}

std::unique_ptr<Optimizer> make(const std::string& yaml, Module& net) {
  return make_optimizer(Node::parse(yaml, "r.yaml"), net.parameters());
}

void train(Optimizer& optimizer, Net& net, uint64_t first, uint64_t last) {
  for (uint64_t t = first; t < last; ++t) {
    set_gradients(net, t);
    optimizer.step(1);
  }
}

bool equal(Net& a, Net& b) {
  const auto x = a.parameters(), y = b.parameters();
  for (size_t i = 0; i < x.size(); ++i)
    if (!at::equal(x[i].parameter->value, y[i].parameter->value)) return false;
  return true;
}

TEST(GradientNoise, VarianceFollowsTheSchedule) {
  Net net(125'000);  // a million elements
  const GradientNoiseOptions options{.eta = 0.3};
  for (const int64_t step : {0, 10, 1000}) {
    zero_gradients(net);
    add_gradient_noise(net.parameters(), options, step);
    const auto noise = net.parameters()[0].parameter->value.grad().to(at::kDouble);
    const double variance = 0.3 / std::pow(1.0 + static_cast<double>(step), 0.55);
    EXPECT_NEAR(noise.var().item<double>() / variance, 1, 0.01) << step;
    EXPECT_LT(std::abs(noise.mean().item<double>()), 4 * std::sqrt(variance / 1e6)) << step;
  }
}

TEST(GradientNoise, OnlyBetweenStartAndStop) {
  const GradientNoiseOptions options{.eta = 4, .start_step = 10, .stop_step = 20};
  for (const int64_t step : {0, 9, 20, 500}) EXPECT_EQ(options.deviation(step), 0) << step;
  EXPECT_DOUBLE_EQ(options.deviation(10), 2);
  EXPECT_DOUBLE_EQ(options.deviation(19), 2 * std::pow(10.0, -0.275));
}

TEST(GradientNoise, NoneIsBitIdentical) {
  Net plain, silent, noisy;
  const auto a = make("{adamw: {lr: 0.1}}", plain);
  const auto b = make("{adamw: {lr: 0.1, gradient_noise: {eta: 0}}}", silent);
  const auto c = make("{adamw: {lr: 0.1, gradient_noise: {eta: 0.01}}}", noisy);
  train(*a, plain, 0, 4);
  train(*b, silent, 0, 4);
  train(*c, noisy, 0, 4);
  EXPECT_TRUE(equal(plain, silent));
  EXPECT_FALSE(equal(plain, noisy));
}

TEST(GradientNoise, ThreadsDoNotChangeIt) {
  Net one(4000), many(4000);
  const GradientNoiseOptions options{.eta = 1};
  for (auto* net : {&one, &many}) zero_gradients(*net);
  {
    const Threads threads(1);
    add_gradient_noise(one.parameters(), options, 5);
  }
  {
    const Threads threads(3);
    add_gradient_noise(many.parameters(), options, 5);
  }
  EXPECT_TRUE(
      at::equal(one.parameters()[0].parameter->value.grad(), many.parameters()[0].parameter->value.grad()));
}

// For every optimizer: saved after 3 of 6 updates and loaded into a fresh one.
TEST(GradientNoise, AResumedRunGoesOnWithTheSameNoise) {
  for (const char* yaml : {"{sgd: {momentum: 0.9, gradient_noise: {eta: 0.3}}}",
                           "{adamw: {gradient_noise: {eta: 0.3}}}", "{muon: {gradient_noise: {eta: 0.3}}}"}) {
    ScratchFolder folder;
    Net whole, resumed;
    const auto first = make(yaml, whole);
    train(*first, whole, 0, 3);
    write_safetensors(folder.file("o.safetensors"), first->state());
    const auto from = whole.parameters(), to = resumed.parameters();
    for (size_t i = 0; i < from.size(); ++i)
      to[i].parameter->value.detach().copy_(from[i].parameter->value.detach());
    train(*first, whole, 3, 6);
    const auto second = make(yaml, resumed);
    second->load(SafeTensors(folder.file("o.safetensors")));
    train(*second, resumed, 3, 6);
    EXPECT_TRUE(equal(whole, resumed)) << yaml;
  }
}

// Without gradients, plain descent walks at random: variance lr^2 sum of all variances.
TEST(GradientNoise, WithoutGradientsWeightsWalkAtRandom) {
  Net net(12'500);  // 100,000 elements: the variance is known to 0.5%
  const auto before = net.parameters()[0].parameter->value.detach().clone();
  const auto sgd = make("{sgd: {lr: 0.1, gradient_noise: {eta: 0.3}}}", net);
  double expected = 0;
  for (int64_t t = 0; t < 30; ++t) {
    zero_gradients(net);
    sgd->step(1);
    expected += 0.01 * 0.3 / std::pow(1.0 + static_cast<double>(t), 0.55);
  }
  const auto walked = (net.parameters()[0].parameter->value.detach() - before).to(at::kDouble);
  EXPECT_NEAR(walked.var().item<double>() / expected, 1, 0.02);
}

TEST(GradientNoise, IsPartOfTheResolvedRecipe) {
  const auto node = resolve_optimizer(Node::parse("{muon: {gradient_noise: {eta: 0.3}}}", "r.yaml"));
  EXPECT_DOUBLE_EQ(node.at("muon").at("gradient_noise").at("gamma").as_double(), 0.55);
  Net net;
  EXPECT_NO_THROW(make_optimizer(node, net.parameters()));
}

TEST(Sgd, EqualsItsDefinition) {
  for (const double momentum : {0.0, 0.9})
    for (const bool nesterov : {false, true}) {
      Net net;
      Sgd sgd({.lr = 0.1, .momentum = momentum, .nesterov = nesterov, .weight_decay = 0.5}, net.parameters());
      std::vector<at::Tensor> w, m;
      for (auto& [name, parameter] : net.parameters()) {
        w.push_back(parameter->value.detach().to(at::kDouble));
        m.push_back(at::zeros_like(w.back()));
      }
      for (uint64_t t = 0; t < 5; ++t) {
        set_gradients(net, t);
        sgd.step(0.5);
        for (size_t i = 0; i < w.size(); ++i) {
          const auto g = net.parameters()[i].parameter->value.grad().to(at::kDouble);
          m[i] = momentum * m[i] + g;
          const auto u = nesterov ? g + momentum * m[i] : m[i];
          w[i] = w[i] * (1 - 0.05 * (i == 0 ? 0.5 : 0.0)) - 0.05 * u;
          EXPECT_LT((net.parameters()[i].parameter->value.detach() - w[i]).abs().max().item<double>(), 1e-6);
        }
      }
    }
}

}  // namespace
}  // namespace weft
