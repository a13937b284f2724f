#include "nn/mixers/hippo.h"

#include <gtest/gtest.h>

#include <ATen/CPUGeneratorImpl.h>

#include "ops/conv/ssm_kernels.h"
#include "ops/reference_check.h"

namespace weft {
namespace {

void expect_values(const at::Tensor& actual, const std::vector<double>& expected, double bound = 1e-6) {
  const auto flat = actual.reshape({-1});
  ASSERT_EQ(flat.numel(), static_cast<int64_t>(expected.size()));
  for (size_t i = 0; i < expected.size(); ++i)
    EXPECT_NEAR(flat[static_cast<int64_t>(i)].item<double>(), expected[i], bound) << i;
}

at::Generator generator() { return at::make_generator<at::CPUGeneratorImpl>(3); }

TEST(Hippo, LegsMatrixAndItsNormalPart) {
  const auto system = hippo::legs(4);
  expect_values(system.a, {-1, 0, 0, 0, -1.732051, -2, 0, 0, -2.236068, -3.872983, -3, 0, -2.645751,
                           -4.582576, -5.916080, -4});
  const auto diagonal = hippo::diagonalise(system);
  expect_values(at::real(diagonal.lambda), {-0.5, -0.5});
  expect_values(at::imag(diagonal.lambda), {-4.603293, -0.556501});
}

// The diagonal form is the same system: V with both of each pair gives A and B back.
TEST(Hippo, DiagonalFormsGiveTheMatrixBack) {
  for (const char* name : {"legs", "legt", "fourier"})
    for (const int64_t states : {4, 16, 64}) {
      const auto system = hippo::named(name, states);
      const auto normal = system.a + at::matmul(system.p.t(), system.p);
      EXPECT_LE((at::matmul(normal, normal.t()) - at::matmul(normal.t(), normal)).abs().max().item<double>(),
                1e-9 * normal.square().sum().item<double>())
          << name;
      const auto d = hippo::diagonalise(system);
      const auto p = 2 * at::real(at::matmul(d.p, d.v.t()));  // [R, N]
      const auto a = 2 * at::real(at::matmul(d.v * d.lambda, at::conj(d.v.t()))) - at::matmul(p.t(), p);
      EXPECT_LE(relative_error(a, system.a), 1e-10) << name << states;
      EXPECT_LE(relative_error(2 * at::real(at::matmul(d.v, d.b)), system.b), 1e-10) << name << states;
      EXPECT_GE(at::real(d.b).min().item<double>(), -1e-12);
    }
}

TEST(Hippo, LegtAndFourierAsWritten) {
  const auto legt = hippo::legt(3);
  expect_values(legt.a, {-0.5, 0.5 * std::sqrt(3.0), -0.5 * std::sqrt(5.0), -0.5 * std::sqrt(3.0), -1.5,
                         0.5 * std::sqrt(15.0), -0.5 * std::sqrt(5.0), -0.5 * std::sqrt(15.0), -2.5});
  const auto fourier = hippo::fourier(4);
  const double r = std::sqrt(2.0);
  expect_values(fourier.a, {-1, 0, -r, 0, 0, 0, 0, 0, -r, 0, -2, -M_PI, 0, 0, M_PI, 0});
  expect_values(fourier.b, {1, 0, r, 0});
}

// The kernel of x' = A x + B u, y = sum of x, under the bilinear rule with step 0.1.
TEST(Hippo, LegsKernelAndItsGeneratingFunction) {
  const auto d = hippo::diagonalise(hippo::legs(4));
  const ops::Dplr system{d.lambda.unsqueeze(0), d.p.unsqueeze(0), d.b.unsqueeze(0),
                         at::tensor({0.1}, at::kDouble)};
  const auto dense = ops::dplr_bilinear(system);
  const auto c = at::matmul(at::ones({1, 4}, at::kDouble).to(at::kComplexDouble), d.v);  // [1, N / 2]
  const auto c_real = 2 * at::cat({at::real(c), -at::imag(c)}, 1);
  const auto expected = {.547052, .223439, .063994, -.004599, -.025622, -.023929, -.013252, -.000737};
  expect_values(ops::dense_kernel(dense.a, dense.b, c_real, 8), expected);

  const auto rest = ((c_real - ops::times_power(c_real, dense.a, 8)) / 2).chunk(2, 1);
  const auto kernel = ops::dplr_kernel(system, at::complex(rest[0], -rest[1]), 8);
  expect_values(kernel, expected);
  expect_values((kernel * at::tensor({1, -1, 1, -1, 1, -1, 1, -1}, at::kDouble)).sum(), {.377998});  // K^(-1)
}

TEST(Hippo, S4dLinGolden) {
  auto random = generator();
  const auto d = hippo::diagonal("lin", 4, random);
  const auto a = at::exp(0.1 * d.lambda), b = (a - 1) / d.lambda * d.b;
  expect_values(ops::exponential_sum(a.unsqueeze(0), 2 * b.view({1, 1, 2}), 6),
                {.387011, .350341, .300985, .244020, .184809, .128457});
}

TEST(Hippo, DiagonalInits) {
  auto random = generator();
  const auto inv = hippo::diagonal("inv", 8, random);
  expect_values(at::imag(inv.lambda),
                {8 / M_PI * 7, 8 / M_PI * (8.0 / 3 - 1), 8 / M_PI * (8.0 / 5 - 1), 8 / M_PI * (8.0 / 7 - 1)});
  expect_values(at::real(hippo::diagonal("real", 6, random).lambda), {-1, -2, -3});
  const auto drawn = hippo::diagonal("random", 64, random);
  EXPECT_LT(at::real(drawn.lambda).max().item<double>(), 0);
  EXPECT_GT(at::imag(drawn.lambda).std().item<double>(), 10);
  const auto legs = hippo::diagonal("legs", 4, random);
  expect_values(at::imag(legs.lambda), {-4.603293, -0.556501});
}

TEST(Hippo, BlocksOfLegs) {
  const auto blocks = hippo::blocks_of_legs(8, 2);
  expect_values(at::imag(blocks.lambda), {-4.603293, -0.556501, -4.603293, -0.556501});
  EXPECT_EQ(blocks.v.sizes(), (std::vector<int64_t>{8, 4}));
  EXPECT_EQ(at::abs(blocks.v.slice(0, 0, 4).slice(1, 2)).max().item<double>(), 0);
  const auto one = hippo::diagonalise(hippo::legs(4));
  EXPECT_TRUE(at::equal(blocks.v.slice(0, 4).slice(1, 2), one.v));
}

// Fed with a signal, LegS keeps its Legendre coefficients: from them the past can be drawn again. At time t the state
// of the scaled system x' = (A x + B u) / t holds u on [0, t]; u = sqrt(5) P_2 there gives the third unit vector.
TEST(Hippo, LegsRemembersPolynomials) {
  const int64_t steps = 4000, states = 6;
  const auto system = hippo::legs(states);
  auto x = at::zeros({states}, at::kDouble);
  const auto unit = at::eye(states, at::kDouble);
  for (int64_t k = 1; k <= steps; ++k) {
    const double s = 2 * (static_cast<double>(k) - 0.5) / static_cast<double>(steps) - 1;
    const double u = std::sqrt(5.0) * (1.5 * s * s - 0.5);
    const double step = 1.0 / static_cast<double>(k);
    x = at::linalg_solve(unit - step * system.a, x + step * u * system.b);
  }
  expect_values(x, {0, 0, 1, 0, 0, 0}, 0.01);
}

}  // namespace
}  // namespace weft
