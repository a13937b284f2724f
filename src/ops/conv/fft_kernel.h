// CPU kernels of the long convolution: real FFTs with channels as lanes. No torch.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/simd/isa.h"

namespace weft::kernels {

// Constants of the transform of 2 size real numbers as `size` complex ones, size a power of two. The same for all
// instruction sets.
struct FftTables {
  int64_t size = 0;
  std::vector<float> twiddles;   // of each pass, largest first: cosines and sines of j, 2 j and 3 j steps
  std::vector<int32_t> pairs;    // positions of the frequencies k and size - k, k = 1 .. size / 2
  std::vector<float> rotations;  // cos, sin of -pi k / size for these k
};
// Made at the first call for a size, which must be a power of two, at least 2; kept.
const FftTables& fft_tables(int64_t size);

// Rows of E numbers, `token` apart.
struct FftRows {
  const float* data = nullptr;
  int64_t token = 0;
  int64_t tokens = 0;  // those after are zero
};

struct FftOut {
  float* data = nullptr;
  int64_t token = 0;
  int64_t first = 0, tokens = 0;  // which part of the convolution is written
  bool add = false;
};

inline constexpr int64_t kFftChannels = 16;  // of a task

struct LongConvProblem {
  const FftTables* tables = nullptr;
  int64_t channels = 0, sequences = 0;
  FftRows kernel;  // taps as tokens: [L, E]; not read when `spectrum` is given
  float* spectrum =
      nullptr;  // [tasks][spectrum_floats()]: of the kernel; read, or written by long_conv_spectrum
  const FftRows* u = nullptr;  // of each sequence
  const FftOut* y = nullptr;
};

// dy in, gradients of u and of the kernel, whose `data` is null where not wanted, out.
struct LongConvGradients {
  const FftRows* dy = nullptr;
  const FftOut* du = nullptr;
  FftOut dkernel;
};

inline int64_t long_conv_tasks(const LongConvProblem& p) {
  return (p.channels + kFftChannels - 1) / kFftChannels;
}
inline int64_t spectrum_floats(const LongConvProblem& p) { return 2 * p.tables->size * kFftChannels; }
// Floats of scratch that one caller needs.
inline int64_t long_conv_scratch(const LongConvProblem& p) { return 4 * spectrum_floats(p); }

// Tasks [begin, end), each kFftChannels channels of all sequences.
void long_conv_spectrum(simd::Isa isa, const LongConvProblem& p, float* scratch, int64_t begin, int64_t end);
void long_conv_forward(simd::Isa isa, const LongConvProblem& p, float* scratch, int64_t begin, int64_t end);
void long_conv_backward(simd::Isa isa, const LongConvProblem& p, const LongConvGradients& g, float* scratch,
                        int64_t begin, int64_t end);

}  // namespace weft::kernels
