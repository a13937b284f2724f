#include "train/optimizers/optimizer.h"

#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "base/scratch_folder.h"
#include "train/optimizers/adamw.h"
#include "train/optimizers/muon.h"

namespace weft {
namespace {

using Role = ParameterRules::Role;

// A hidden matrix, a tall one, an embedding with its own learning rate, a norm.
class Net : public Module {
 public:
  Net() {
    parameter("wide", {4, 6}, init::normal(1));
    parameter("tall", {8, 2}, init::normal(1));
    parameter("embedding", {5, 3}, init::normal(1), {.role = Role::embedding, .lr_scale = 0.5});
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

// The definition, in fp64 and without any fusing.
struct AdamReference {
  at::Tensor w, m, v;
  void step(const at::Tensor& gradient, int64_t t, double lr, double decay, const AdamW::Options& o) {
    const auto g = gradient.to(at::kDouble);
    m = o.beta1 * m + (1 - o.beta1) * g;
    v = o.beta2 * v + (1 - o.beta2) * g * g;
    const auto mean = m / (1 - std::pow(o.beta1, t));
    const auto square = v / (1 - std::pow(o.beta2, t));
    w = w - lr * decay * w - lr * mean / (square.sqrt() + o.eps);
  }
};

TEST(AdamW, EqualsItsDefinitionOverTenSteps) {
  Net net;
  const AdamW::Options options{.lr = 0.05, .beta1 = 0.8, .beta2 = 0.9, .weight_decay = 0.2};
  AdamW optimizer(options, net.parameters());
  std::map<std::string, AdamReference> references;
  for (auto& [name, parameter] : net.parameters()) {
    const auto zero = at::zeros(parameter->value.sizes(), at::kDouble);
    references[name] = {parameter->value.detach().to(at::kDouble), zero, zero};
  }
  for (int64_t t = 1; t <= 10; ++t) {
    set_gradients(net, static_cast<uint64_t>(t));
    const double factor = 1.0 / static_cast<double>(t);
    optimizer.step(factor);
    for (auto& [name, parameter] : net.parameters()) {
      const double lr = options.lr * factor * (name == "embedding" ? 0.5 : 1.0);
      auto& reference = references[name];
      reference.step(parameter->value.grad(), t, lr, name == "norm" ? 0 : options.weight_decay, options);
      const double error = (parameter->value.detach() - reference.w).abs().max().item<double>();
      EXPECT_LT(error, 2e-6) << name << " at step " << t;
    }
  }
}

TEST(AdamW, ContinuesBitIdenticallyFromItsState) {
  ScratchFolder folder;
  Net a, b;
  AdamW first({}, a.parameters());
  for (uint64_t t = 1; t <= 3; ++t) {
    set_gradients(a, t);
    first.step(1);
  }
  write_safetensors(folder.file("optimizer.safetensors"), first.state());
  const auto from = a.parameters(), to = b.parameters();
  for (size_t i = 0; i < from.size(); ++i)
    to[i].parameter->value.detach().copy_(from[i].parameter->value.detach());
  AdamW second({}, b.parameters());
  second.load(SafeTensors(folder.file("optimizer.safetensors")));
  for (auto* pair : {&a, &b}) set_gradients(*pair, 9);
  first.step(1);
  second.step(1);
  for (size_t i = 0; i < from.size(); ++i)
    EXPECT_TRUE(at::equal(from[i].parameter->value, to[i].parameter->value)) << from[i].name;
}

TEST(Optimizer, AStateOfAnotherOptimizerIsRejectedByName) {
  ScratchFolder folder;
  Net net;
  write_safetensors(folder.file("o.safetensors"), AdamW({}, net.parameters()).state());
  Muon muon({}, net.parameters());
  try {
    muon.load(SafeTensors(folder.file("o.safetensors")));
    FAIL() << "no error";
  } catch (const InputError& error) {
    EXPECT_NE(std::string(error.what()).find("muon.m.wide"), std::string::npos) << error.what();
  }
}

TEST(Muon, UpdatesHaveSingularValuesInTheKnownBand) {
  auto random = at::make_generator<at::CPUGeneratorImpl>(1);
  for (const auto& [rows, columns] :
       std::vector<std::pair<int64_t, int64_t>>{{32, 32}, {64, 16}, {16, 48}, {1, 9}}) {
    const auto x = at::randn({2, rows, columns}, random);
    const auto u = orthogonalize(x);
    ASSERT_EQ(u.sizes(), x.sizes());
    const auto before = at::linalg_svdvals(x);
    const auto after = at::linalg_svdvals(u);
    EXPECT_LT(after.max().item<double>(), 1.203);
    const auto norms = before.square().sum(-1, true).sqrt();
    const auto large = after.masked_select(before / norms > 1e-2);
    ASSERT_GT(large.numel(), 0);
    EXPECT_GT(large.min().item<double>(), 0.68) << rows << "x" << columns;
    // The singular vectors stay: u x' is symmetric and positive on the large directions.
    const auto product = at::matmul(u, x.mT());
    EXPECT_LT((product - product.mT()).abs().max().item<double>(), 1e-3 * product.abs().max().item<double>());
  }
}

TEST(Muon, ScalesTallMatricesAndLeavesTheRestToAdamW) {
  Net net, other;
  const auto before = net.parameters()[1].parameter->value.detach().clone();  // tall, 8 x 2
  Muon muon({.lr = 0.1, .weight_decay = 0}, net.parameters());
  set_gradients(net, 5);
  muon.step(0.5);
  const auto tall = net.parameters()[1].parameter;
  const auto expected = before - 0.05 * 2.0 * orthogonalize(tall->value.grad().unsqueeze(0))[0];
  EXPECT_TRUE(at::allclose(tall->value.detach(), expected, 1e-5, 1e-6));

  AdamW adamw({}, other.parameters());
  set_gradients(other, 5);
  adamw.step(0.5);
  for (const size_t i : {2, 3})
    EXPECT_TRUE(at::equal(net.parameters()[i].parameter->value, other.parameters()[i].parameter->value));
  std::vector<std::string> names;
  for (const auto& [name, tensor] : muon.state()) names.push_back(name);
  EXPECT_NE(std::find(names.begin(), names.end(), "muon.m.tall"), names.end());
  EXPECT_EQ(std::find(names.begin(), names.end(), "adamw.m.tall"), names.end());
}

TEST(Clip, BoundsTheNormOfAllGradientsTogether) {
  Net net;
  set_gradients(net, 2);
  const double norm = clip_gradients(net.parameters(), 0);
  EXPECT_NEAR(clip_gradients(net.parameters(), 0.5), norm, 1e-6);
  EXPECT_NEAR(clip_gradients(net.parameters(), 0.5), 0.5, 1e-5);
}

TEST(Optimizer, RegistryReadsResolvesAndNamesTheNearest) {
  Net net;
  EXPECT_DOUBLE_EQ(make_optimizer(Node::parse("adamw: 0.25", "r.yaml"), net.parameters())->learning_rate(),
                   0.25);
  const auto resolved = resolve_optimizer(Node::parse("muon: {lr: 0.1, adamw: {beta2: 0.99}}", "r.yaml"));
  EXPECT_DOUBLE_EQ(resolved.at("muon").at("adamw").at("beta2").as_double(), 0.99);
  EXPECT_DOUBLE_EQ(resolved.at("muon").at("adamw").at("beta1").as_double(), 0.9);
  for (const char* text :
       {"adam: {}", "adamw: {lr: -1}", "adamw: {learning_rate: 1}", "{adamw: {}, muon: {}}"})
    try {
      resolve_optimizer(Node::parse(text, "r.yaml"));
      FAIL() << text;
    } catch (const InputError& error) {
      EXPECT_NE(std::string(error.what()).find("r.yaml:1"), std::string::npos) << error.what();
    }
}

}  // namespace
}  // namespace weft
