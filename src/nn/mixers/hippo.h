// State matrices that remember their input as coefficients of orthogonal polynomials or waves, and the diagonal ones that
// approximate them. x' = A x + B u. Gu et al. 2020, arXiv:2008.07669 (HiPPO); 2022, arXiv:2111.00396 (S4),
// arXiv:2206.11893 (S4D), arXiv:2206.12037 (Fourier). All in fp64 on the CPU.
//
// N states; a diagonal system keeps N / 2 of them, one of each conjugate pair, with Im < 0 for those from a matrix.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <string>

namespace weft::hippo {

struct System {
  at::Tensor a;  // [N, N]
  at::Tensor b;  // [N]
  at::Tensor p;  // [R, N]: a + p' p is normal; R = 1, for legt 2
};

// Legendre polynomials on the whole past, which is scaled to [0, 1].
System legs(int64_t states);
// Legendre polynomials on a window that slides.
System legt(int64_t states);
// Sines and cosines on a window that slides. N even.
System fourier(int64_t states);
System named(const std::string& name, int64_t states);  // "legs", "legt", "fourier"; Bug otherwise

// A = V (diag(lambda) - P P*) V*, by the Hermitian eigenproblem of the normal part. N even.
struct Diagonalised {
  at::Tensor lambda;  // [N / 2] complex
  at::Tensor p;       // [R, N / 2] complex
  at::Tensor b;       // [N / 2] complex, real numbers >= 0
  at::Tensor v;       // [N, N / 2] complex, orthonormal columns
};
Diagonalised diagonalise(const System& system);

// lambda [N / 2] complex and b of diagonal models: "lin", "inv", "legs", "real", "random". `random` draws only for "random":
// rates exp(normal) and frequencies N / 2 normal.
struct Diagonal {
  at::Tensor lambda, b;
};
Diagonal diagonal(const std::string& name, int64_t states, at::Generator& random);

// Blocks of legs of N / blocks states each, diagonalised: lambda [N / 2], v [N, N / 2]. S5 (Smith et al. 2022,
// arXiv:2208.04933). N / blocks even.
Diagonalised blocks_of_legs(int64_t states, int64_t blocks);

}  // namespace weft::hippo
