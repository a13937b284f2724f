#include "ops/conv/ssm_kernels.h"

#include <gtest/gtest.h>

#include "ops/reference_check.h"

namespace weft::ops {
namespace {

constexpr double kBound = 1e-5, kCauchyBound = 1e-4;

at::Tensor complex_normal(at::IntArrayRef shape, uint64_t seed) {
  return at::complex(normal(shape, seed), normal(shape, seed + 100));
}

// Inside the unit circle, some close to it.
at::Tensor poles(int64_t channels, int64_t states, uint64_t seed) {
  const auto radius = 1 - 0.3 * at::sigmoid(3 * normal({channels, states}, seed)),
             angle = 2 * normal({channels, states}, seed + 1);
  return at::polar(radius, angle);
}

// One token after another, as the definition says; a is [E, N] or [E, N, N].
LtiResult by_steps(const at::Tensor& u, const at::Tensor& a, const at::Tensor& b, const at::Tensor& c,
                   const at::Tensor& initial, const at::Tensor& starts) {
  auto h = initial.defined() ? initial : at::zeros({u.size(0), b.size(0), b.size(1)}, b.options());
  TensorList y;
  for (int64_t t = 0; t < u.size(1); ++t) {
    if (starts.defined()) h = h * starts.select(1, t).logical_not().view({-1, 1, 1}).to(h.scalar_type());
    const auto moved = a.dim() == 3 ? at::matmul(a, h.unsqueeze(-1)).squeeze(-1) : a * h;
    h = moved + b * u.select(1, t).unsqueeze(-1);
    y.push_back(at::real((c * h).sum(-1)));
  }
  return {at::stack(y, 1), h};
}

at::Tensor starts_of(int64_t batch, int64_t tokens) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(5);
  auto starts = at::rand({batch, tokens}, generator) < 0.1;
  starts[0].fill_(false);
  return starts;
}

TEST(SsmKernels, SumsAndMomentsOfExponentials) {
  for (const int64_t length : {1, 2, 3, 7, 16, 63, 64, 65, 500}) {
    const auto a = poles(3, 4, 1), w = complex_normal({2, 3, 4}, 2);
    const auto powers = at::pow(a.unsqueeze(-1), at::arange(length, at::kDouble));  // [E, N, L]
    const auto expected = at::real((w.unsqueeze(-1) * powers).sum(2));
    EXPECT_LE(relative_error(exponential_sum(a, w, length), expected), 1e-10) << length;
    EXPECT_LE(relative_error(exponential_sum(a, w.to(at::kComplexFloat), length), expected), kBound)
        << length;
    const auto real = exponential_sum(at::abs(a), at::real(w), length);
    EXPECT_LE(relative_error(real, (at::real(w).unsqueeze(-1) *
                                    at::pow(at::abs(a).unsqueeze(-1), at::arange(length, at::kDouble)))
                                       .sum(2)),
              1e-10);

    const auto u = normal({2, length, 3}, 3);
    const auto moments =
        (powers.flip(-1).unsqueeze(0) * u.transpose(1, 2).unsqueeze(2)).sum(-1);  // [B, E, N]
    EXPECT_LE(relative_error(at::view_as_real(exponential_moments(a, u)), at::view_as_real(moments)), 1e-10)
        << length;
    EXPECT_LE(
        relative_error(at::view_as_real(exponential_moments(a, u.to(at::kFloat))), at::view_as_real(moments)),
        kBound)
        << length;
  }
}

// Kernels that ring for the whole length: fp64 powers keep the phase.
TEST(SsmKernels, LongKernelsKeepTheBound) {
  const int64_t length = 16384;
  const auto rate =
      at::complex(at::tensor({-1e-4, -1e-6, -1e-3}, at::kDouble), at::tensor({0.5, 3.0, 1e-3}, at::kDouble))
          .unsqueeze(0);
  const auto w = complex_normal({1, 1, 3}, 2);
  const auto exact =
      at::real((w.unsqueeze(-1) * at::exp(rate.unsqueeze(-1) * at::arange(length, at::kDouble))).sum(2));
  EXPECT_LE(relative_error(exponential_sum(at::exp(rate), w.to(at::kComplexFloat), length), exact), kBound);
}

TEST(SsmKernels, DiagonalEqualsTheRecurrence) {
  for (const int64_t tokens : {0, 1, 2, 17, 64, 65})
    for (const bool packed : {false, true}) {
      const auto u = normal({2, tokens, 3}, 3), a = poles(3, 4, 1), b = complex_normal({3, 4}, 5),
                 c = complex_normal({3, 4}, 6);
      const auto initial = complex_normal({2, 3, 4}, 7);
      const auto starts = packed ? starts_of(2, tokens) : at::Tensor();
      for (const auto& before : {at::Tensor(), initial}) {
        if (tokens == 0) {
          EXPECT_TRUE(!before.defined() || at::equal(diagonal_ssm({u, a, b, c, before}).state, before));
          continue;
        }
        const auto expected = by_steps(u, a, b, c, before, starts);
        const auto wide = diagonal_ssm({u, a, b, c, before, starts});
        EXPECT_LE(relative_error(wide.y, expected.y), 1e-10) << tokens << packed;
        EXPECT_LE(relative_error(at::view_as_real(wide.state), at::view_as_real(expected.state)), 1e-10)
            << tokens << packed;
        const auto narrow = diagonal_ssm({u.to(at::kFloat), a, b, c, before, starts});
        EXPECT_LE(relative_error(narrow.y, expected.y), kBound) << tokens << packed;
        EXPECT_LE(relative_error(at::view_as_real(narrow.state), at::view_as_real(expected.state)), kBound);
      }
    }
}

TEST(SsmKernels, DenseEqualsTheRecurrence) {
  for (const int64_t tokens : {1, 2, 17, 64, 65})
    for (const bool packed : {false, true}) {
      const auto u = normal({2, tokens, 3}, 3), b = normal({3, 4}, 5), c = normal({3, 4}, 6),
                 initial = normal({2, 3, 4}, 7);
      const auto a = 0.98 * std::get<0>(at::linalg_qr(normal({3, 4, 4}, 1)));
      const auto starts = packed ? starts_of(2, tokens) : at::Tensor();
      for (const auto& before : {at::Tensor(), initial}) {
        const auto expected = by_steps(u, a, b, c, before, starts);
        const auto wide = dense_ssm({u, a, b, c, before, starts});
        EXPECT_LE(relative_error(wide.y, expected.y), 1e-10) << tokens << packed;
        EXPECT_LE(relative_error(wide.state, expected.state), 1e-10) << tokens << packed;
        const auto narrow = dense_ssm({u.to(at::kFloat), a, b, c, before, starts});
        EXPECT_LE(relative_error(narrow.y, expected.y), kBound) << tokens << packed;
      }
      const auto impulse = at::constant_pad_nd(at::ones({1, 1, 3}, at::kDouble), {0, 0, 0, tokens - 1});
      EXPECT_LE(relative_error(dense_kernel(a, b, c, tokens), by_steps(impulse, a, b, c, {}, {}).y[0].t()),
                1e-10);
    }
}

Dplr random_dplr(int64_t rank, uint64_t seed) {
  return {at::complex(-at::exp(normal({2, 3}, seed)), 5 * normal({2, 3}, seed + 1)),
          complex_normal({2, rank, 3}, seed + 2), complex_normal({2, 3}, seed + 3),
          at::tensor({0.1, 0.02}, at::kDouble)};
}

// The frequencies of L = 8192 * 3 need several turns.
TEST(SsmKernels, CauchyKernelEqualsDensePowers) {
  for (const int64_t rank : {0, 1, 2})
    for (const int64_t length : {2, 8, 64, 24576}) {
      const auto system = random_dplr(rank, 11);
      const auto c = complex_normal({2, 3}, 21);
      const auto dense = dplr_bilinear(system);
      const auto c_real = 2 * at::cat({at::real(c), -at::imag(c)}, 1);  // y = 2 Re(c . x)
      const auto expected = dense_kernel(dense.a, dense.b, c_real, length);
      const auto rest = c_real - times_power(c_real, dense.a, length);
      const auto halves = (rest / 2).chunk(2, 1);
      const auto truncated = at::complex(halves[0], -halves[1]);
      EXPECT_LE(relative_error(dplr_kernel(system, truncated, length), expected), 1e-10)
          << rank << " " << length;
      EXPECT_LE(relative_error(dplr_kernel(system, truncated.to(at::kComplexFloat), length), expected),
                kCauchyBound)
          << rank << " " << length;
    }
}

TEST(SsmKernels, DiscreteSystemIsTheBilinearRule) {
  const auto system = random_dplr(1, 31);
  const auto dense = dplr_bilinear(system);
  // With both of each pair, in complex numbers.
  const auto both = [](const at::Tensor& x) { return at::cat({x, at::conj(x)}, -1); };
  const auto p = both(system.p).transpose(1, 2);  // [E, N, 1]
  const auto a = at::diag_embed(both(system.lambda)) - at::matmul(p, at::conj(p).transpose(1, 2));
  const auto half = (system.dt / 2).view({-1, 1, 1});
  const auto unit = at::eye(6, a.options());
  const auto expected_a = at::linalg_solve(unit - half * a, unit + half * a);
  const auto expected_b =
      at::linalg_solve(unit - half * a, 2 * half * both(system.b).unsqueeze(-1)).squeeze(-1);
  const auto state = complex_normal({2, 3}, 41);
  const auto moved = at::matmul(expected_a, both(state).unsqueeze(-1)).squeeze(-1).slice(1, 0, 3);
  const auto real = [](const at::Tensor& x) { return at::cat({at::real(x), at::imag(x)}, 1); };
  EXPECT_LE(relative_error(at::matmul(dense.a, real(state).unsqueeze(-1)).squeeze(-1), real(moved)), 1e-12);
  EXPECT_LE(relative_error(dense.b, real(expected_b.slice(1, 0, 3))), 1e-12);
}

at::Tensor as_complex(const at::Tensor& x) { return at::view_as_complex(x.contiguous()); }

TEST(SsmKernels, Gradients) {
  const auto starts = at::tensor({0, 0, 1, 0, 0}).to(at::kBool).unsqueeze(0);
  expect_finite_differences(
      [&](const TensorList& t) {
        const auto radius = 0.9 * at::sigmoid(t[1].select(-1, 0));
        const auto a = at::polar(radius, t[1].select(-1, 1));
        TensorList out;
        for (const auto& s : {at::Tensor(), starts}) {
          const auto r = diagonal_ssm({t[0], a, as_complex(t[2]), as_complex(t[3]), as_complex(t[4]), s});
          out.push_back(r.y), out.push_back(at::view_as_real(r.state));
        }
        return out;
      },
      {normal({1, 5, 2}, 1), normal({2, 3, 2}, 2), normal({2, 3, 2}, 3), normal({2, 3, 2}, 4),
       normal({1, 2, 3, 2}, 5)});
  expect_finite_differences(
      [&](const TensorList& t) {
        const auto r = dense_ssm({t[0], 0.3 * t[1], t[2], t[3], t[4]});
        return TensorList{r.y, r.state};
      },
      {normal({1, 5, 2}, 1), normal({2, 3, 3}, 2), normal({2, 3}, 3), normal({2, 3}, 4),
       normal({1, 2, 3}, 5)});
  const auto system = random_dplr(1, 31);
  expect_finite_differences(
      [&](const TensorList& t) {
        const Dplr moved{as_complex(t[0]), as_complex(t[1]), as_complex(t[2]), at::exp(t[3])};
        const auto dense = dplr_bilinear(moved);
        return TensorList{dplr_kernel(moved, as_complex(t[4]), 8), dense.a, dense.b};
      },
      {at::view_as_real(system.lambda), at::view_as_real(system.p), at::view_as_real(system.b),
       at::log(system.dt), normal({2, 3, 2}, 9)});
}

TEST(SsmKernels, RejectWrongShapes) {
  const auto u = normal({1, 4, 3}, 1), b = normal({3, 2}, 2);
  EXPECT_NE(error_text([&] {
              diagonal_ssm({u, b, normal({3, 4}, 1), b});
            }).find("b is [3, 4], expected [3, 2]"),
            std::string::npos);
  EXPECT_NE(error_text([&] { dense_ssm({u, b, b, b}); }).find("a is [3, 2]"), std::string::npos);
  EXPECT_NE(error_text([&] {
              dplr_kernel(random_dplr(1, 1), complex_normal({2, 3}, 2), 7);
            }).find("must be even"),
            std::string::npos);
}

}  // namespace
}  // namespace weft::ops
