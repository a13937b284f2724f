#include "ops/activation/named.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <map>

#include "ops/reference_check.h"

namespace weft::ops {
namespace {

double phi(double x) { return 0.5 * (1 + std::erf(x / std::sqrt(2.0))); }
double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// Every activation again, one number at a time.
const std::map<std::string, std::function<double(double)>> kDefinitions{
    {"silu", [](double x) { return x * sigmoid(x); }},
    {"gelu", [](double x) { return x * phi(x); }},
    {"gelu_tanh", [](double x) { return x * sigmoid(2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)); }},
    {"gelu_quick", [](double x) { return x * sigmoid(1.702 * x); }},
    {"gelu_clipped", [](double x) { return std::min(std::max(x * phi(x), -10.0), 10.0); }},
    {"relu", [](double x) { return std::max(x, 0.0); }},
    {"relu2", [](double x) { return x > 0 ? x * x : 0; }},
    {"relu6", [](double x) { return std::min(std::max(x, 0.0), 6.0); }},
    {"leaky_relu", [](double x) { return x > 0 ? x : 0.01 * x; }},
    {"tanh", [](double x) { return std::tanh(x); }},
    {"sigmoid", sigmoid},
    {"mish", [](double x) { return x * std::tanh(std::log1p(std::exp(x))); }},
    {"hard_swish", [](double x) { return x * std::min(std::max(x + 3, 0.0), 6.0) / 6; }},
    {"laplace", [](double x) { return phi((x - 0.707107) / 0.282095); }},
    {"sqrt_softplus", [](double x) { return std::sqrt(std::log1p(std::exp(x))); }},
    {"none", [](double x) { return x; }},
};

TEST(NamedActivation, ValuesAndProducts) {
  ASSERT_EQ(kDefinitions.size(), activation_names().size());
  const auto x = at::linspace(-12, 12, 97, at::kDouble), up = normal({97}, 1);
  for (const auto& name : activation_names()) {
    const auto f = activation_of(name);
    auto expected = x.clone();
    for (int64_t i = 0; i < x.numel(); ++i) expected[i] = kDefinitions.at(name)(x[i].item<double>());
    EXPECT_LE((activate(f, x) - expected).abs().max().item<double>(), 1e-12) << name;
    EXPECT_LE((activate_mul(f, x, up) - expected * up).abs().max().item<double>(), 1e-11) << name;
    EXPECT_EQ(activate_mul(f, x.to(at::kBFloat16), up.to(at::kBFloat16)).scalar_type(), at::kBFloat16)
        << name;
  }
}

TEST(NamedActivation, Gradients) {
  for (const auto& name : activation_names()) {
    const auto f = activation_of(name);
    expect_finite_differences([f](const TensorList& t) { return TensorList{activate_mul(f, t[0], t[1])}; },
                              {normal({3, 5}, 1), normal({3, 5}, 2)});
  }
}

TEST(NamedActivation, UnknownNamesAreErrors) {
  EXPECT_EQ(error_text([] { activation_of("swish2"); }).substr(0, 46),
            "'swish2' is not an activation; known: silu, ge");
}

}  // namespace
}  // namespace weft::ops
