// Long causal depthwise convolution by FFT, whole and as a stream:
//   y[t, e] = sum_{s = 0}^{min(t, L - 1)} kernel[e, s] u[t - s, e]
// The convolution mode of S4 and its relatives (Gu et al. 2022, arXiv:2111.00396), Hyena (Poli et al. 2023,
// arXiv:2302.10866). Stream: relaxed multiplication (van der Hoeven 2002; for such models Oncescu et al. 2024,
// arXiv:2410.12982).
//
// B batch, T tokens, E channels, L taps.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>

namespace weft::ops {

//   u       [B, T, E] any float type
//   kernel  [E, L] any float type; taps that no pair of tokens reaches count for nothing, L may exceed T
//   starts  [B, T] bool, true where a document begins; undefined: none
// Returns [B, T, E] in the type of u. Differentiable in u and kernel (second derivatives: WEFT_KERNEL=reference).
// T may be 0. Time O(E T log T), of documents that of each; memory beyond the results about 16 bytes a token of the
// longest document and vector lane a thread. Results do not depend on the number of threads.
// Error against fp64 relative to max|y|: fp32 1e-5, bf16 and fp16 2e-2.
at::Tensor long_conv(const at::Tensor& u, const at::Tensor& kernel, const at::Tensor& starts = {});

// The same token by token or in chunks of any size. A state is two tensors and a count, so it can be copied, saved
// and rolled back. With P the power of two at or above L, a token costs O(E log^2 P) on average, a chunk of T tokens
// O(E T log T), memory 2 B P E numbers.
struct LongConvState {
  at::Tensor inputs;   // [B, P, E] fp32: slot t mod P holds token t
  at::Tensor pending;  // [B, P, E] fp32: what tokens so far add to y of the next P tokens
  int64_t tokens = 0;  // seen
};

class LongConvStream {
 public:
  // kernel [E, L], L >= 1, on the CPU; its spectra are made when first needed and shared by all states.
  explicit LongConvStream(const at::Tensor& kernel);
  ~LongConvStream();
  LongConvState initial_state(int64_t batch) const;
  // u [B, T, E] -> y [B, T, E] in the type of u; moves `state` on by T tokens, in place. Error as long_conv. Not
  // differentiable.
  at::Tensor run(const at::Tensor& u, LongConvState& state) const;

 private:
  struct Spectra;
  at::Tensor kernel_;  // [E, L] fp32
  int64_t period_;     // P
  std::unique_ptr<Spectra> spectra_;
};

namespace reference {
at::Tensor long_conv(const at::Tensor& u, const at::Tensor& kernel, const at::Tensor& starts = {});
}

}  // namespace weft::ops
