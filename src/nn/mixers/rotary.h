// Rotary positions of queries and keys, and the ways in which models stretch them to longer texts: the one place that
// knows their frequencies.
//   none          pair i of d channels turns by w_i = theta^(-2 i / d) a position        Su et al. 2021, arXiv:2104.09864
//   linear        w_i / factor                                                     Chen et al. 2023, arXiv:2306.15595
//   dynamic       theta (factor L / length - factor + 1)^(d / (d - 2)) as theta, where L is the document's length now
//                 or `length` if that is more ("NTK-aware")
//   yarn          w_i / factor where a pair turns less than beta_slow times within `length`, w_i where more than
//                 beta_fast times, a line from one to the other between         Peng et al. 2023, arXiv:2309.00071
//   longrope      w_i / short_i in documents up to `length`, w_i / long_i in longer ones
//                                                                                 Ding et al. 2024, arXiv:2402.13753
//   llama3        w_i / factor for wavelengths above length / low_frequency, w_i below length / high_frequency, between
//                 them a line in 1 / wavelength                              Grattafiori et al. 2024, arXiv:2407.21783
//   proportional  w_i / factor for the first share of the pairs, 0 for the rest
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>

#include "base/fields.h"
#include "nn/context.h"
#include "ops/rope/rope.h"

namespace weft {

struct RotaryOptions {
  double theta = 10000;      // 0: no rotary positions
  int64_t dim = 0;           // rotated channels of a head; 0: all
  bool interleaved = false;  // pairs are (2i, 2i + 1), else (i, i + dim / 2)
  Node scaling;              // {yarn: {factor: 4, length: 4096}}; null: none
  // The options "rope", "rope_dim", "rope_interleaved" and "rope_scaling" of a mixer.
  void fields(Fields& f);
};

class Rotary {
 public:
  Rotary();  // turns nothing
  // For heads of head_dim channels. InputError, beginning with `where`, for a number of channels that does not fit and
  // for scalings that are unknown or not whole.
  Rotary(const RotaryOptions& options, int64_t head_dim, const std::string& where);
  ~Rotary();
  Rotary(Rotary&&) noexcept;
  Rotary& operator=(Rotary&&) noexcept;

  // Whether anything is turned.
  explicit operator bool() const { return options_.theta > 0; }
  // Whether the frequencies depend on how long a document is so far. Keys are then kept as they are and turned anew in
  // every call.
  bool by_length() const;
  // x [B, T, H, K] at positions [B, T] -> the same shape; in documents that are `lengths` [B, T] int64 long, which is
  // only read where the frequencies depend on it.
  at::Tensor operator()(const at::Tensor& x, const at::Tensor& positions,
                        const at::Tensor& lengths = {}) const;

  // How it turns, with what lies on `device`. by_length(): without the frequencies, which the lengths give.
  ops::Rope turns(at::Device device) const;

  struct Scaling;

 private:
  RotaryOptions options_;
  std::unique_ptr<Scaling> scaling_;  // null: none
  // [dim / 2] fp64, where it was last wanted; undefined without a scaling and where they depend on lengths
  mutable at::Tensor frequencies_;
};

// How long, at the end of this call, the document is that each token belongs to: [B, S] int64 for tokens at `positions`
// in `segments` (undefined: all in the document of the state), given the `context` of the call.
at::Tensor document_lengths(const at::Tensor& positions, const at::Tensor& segments, const Context& context);

}  // namespace weft
