#include "nn/mixers/hippo.h"

#include <cmath>
#include <vector>

#include "base/error.h"

namespace weft::hippo {
namespace {

at::Tensor index(int64_t count) { return at::arange(count, at::kDouble); }

// One of each conjugate pair, to complex fp64.
at::Tensor as_complex(const at::Tensor& x) { return x.to(at::kComplexDouble); }

}  // namespace

System legs(int64_t states) {
  const auto root = at::sqrt(2 * index(states) + 1);
  return {-at::tril(at::outer(root, root), -1) - at::diag(index(states) + 1), root,
          at::sqrt(index(states) + 0.5).unsqueeze(0)};
}

System legt(int64_t states) {
  const auto n = index(states), root = at::sqrt(2 * n + 1);
  const auto sign = 1 - 2 * at::remainder(n, 2);  // (-1)^n
  const auto full = at::outer(root, root), alternating = at::outer(root * sign, root * sign);
  const auto a = -0.5 * (at::tril(full) + at::triu(alternating, 1));
  const auto even = (1 + sign) / 2;
  return {a, 0.5 * root, at::stack({root * even, root * (1 - even)}) * std::sqrt(0.5)};
}

System fourier(int64_t states) {
  invariant(states % 2 == 0, "fourier needs an even number of states, not {}", states);
  auto coupling = at::zeros({states}, at::kDouble), b = at::zeros({states}, at::kDouble);
  coupling.slice(0, 0, states, 2).copy_(M_PI * index(states / 2));  // between 2 k and 2 k + 1: frequency k
  b.slice(0, 0, states, 2).fill_(std::sqrt(2.0));
  b.slice(0, 0, 1).fill_(1);
  const auto above = at::diag(coupling.slice(0, 0, states - 1), 1);
  return {above.t() - above - at::outer(b, b), b, b.unsqueeze(0)};
}

System named(const std::string& name, int64_t states) {
  if (name == "legs") return legs(states);
  if (name == "legt") return legt(states);
  invariant(name == "fourier", "no HiPPO matrix is called {}", name);
  return fourier(states);
}

Diagonalised diagonalise(const System& system) {
  const int64_t states = system.b.size(0);
  invariant(states % 2 == 0, "an odd number of states, {}, has no conjugate pairs", states);
  // Normal part: a real multiple of the identity plus a skew matrix S; -i S is Hermitian and S v = i w v.
  const auto normal = system.a + at::matmul(system.p.t(), system.p);
  const auto real = at::diagonal(normal).mean();
  const auto skew = (normal - normal.t()) / 2;
  const auto solved = at::linalg_eigh(as_complex(skew) * c10::complex<double>(0, -1));
  const auto w = std::get<0>(solved).slice(0, 0, states / 2);  // ascending: the negative half
  auto v = std::get<1>(solved).slice(1, 0, states / 2).clone();
  if (std::abs(w[-1].item<double>()) <
      1e-9) {  // a real pair: (r1 + i r2) / sqrt(2) and its conjugate stand for it
    const auto null = std::get<1>(solved).slice(1, states / 2 - 1, states / 2 + 1);
    const auto plane = std::get<1>(at::linalg_eigh(at::real(at::matmul(null, at::conj(null.t())))));
    v.select(1, -1).copy_(at::complex(plane.select(1, -1), plane.select(1, -2)) * std::sqrt(0.5));
  }
  // An eigenvector's phase is free. Turned so that b is real, nothing depends on the solver, and b needs none of the
  // clipping of its imaginary part that the authors' code does.
  const auto along = at::matmul(as_complex(system.b), at::conj(v));
  const auto size = at::abs(along);
  v = at::where(size > 1e-12, v * (along / size.clamp_min(1e-12)), v);
  return {at::complex(real.expand_as(w).contiguous(), w), at::matmul(as_complex(system.p), at::conj(v)),
          at::matmul(as_complex(system.b), at::conj(v)), v};
}

Diagonal diagonal(const std::string& name, int64_t states, at::Generator& random) {
  const int64_t pairs = states / 2;
  const auto n = index(pairs), half = at::full({pairs}, -0.5, at::kDouble);
  const auto ones = as_complex(at::ones({pairs}, at::kDouble));
  if (name == "lin") return {at::complex(half, M_PI * n), ones};
  if (name == "inv") {
    const auto size = static_cast<double>(states);
    return {at::complex(half, size / M_PI * (size / (2 * n + 1) - 1)), ones};
  }
  if (name == "real") return {as_complex(-(n + 1)), ones};
  if (name == "random") {
    const auto draw = [&] { return at::randn({pairs}, random, at::TensorOptions().dtype(at::kDouble)); };
    const auto rate = at::exp(draw());
    return {at::complex(-rate, static_cast<double>(pairs) * draw()), ones};
  }
  invariant(name == "legs", "no diagonal state matrix is called {}", name);
  const auto system = diagonalise(legs(states));
  return {system.lambda, system.b};
}

Diagonalised blocks_of_legs(int64_t states, int64_t blocks) {
  invariant(states % (2 * blocks) == 0, "{} states do not make {} blocks of pairs", states, blocks);
  const auto one = diagonalise(legs(states / blocks));
  const auto count = static_cast<size_t>(blocks);
  return {one.lambda.repeat({blocks}), one.p.repeat({1, blocks}), one.b.repeat({blocks}),
          at::block_diag(std::vector<at::Tensor>(count, one.v))};
}

}  // namespace weft::hippo
