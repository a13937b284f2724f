// From queries, keys and values to the read-out: what attention and cross_attention share.
#pragma once

#include "nn/mixer.h"
#include "ops/attention/attention.h"

namespace weft {

struct ScoreOptions {
  double scale = 0, softcap = 0;
  bool differential = false;
  double lambda_init = 0;
  // The options "scale", "softcap", "differential" and "lambda_init" of a mixer.
  void fields(Fields& f);
};

// Softmax attention, or differential attention (Ye et al. 2024, arXiv:2410.05258), in which neighbouring heads 2j and
// 2j + 1 form a pair that reads both their values by the difference of two softmaxes:
//   o = rms_norm((softmax(q1 k1' s) - lambda softmax(q2 k2' s)) [v1 v2]) (1 - lambda_init)      norm over both heads
//   lambda = exp(a1.b1) - exp(a2.b2) + lambda_init, a and b learned, shared by all pairs
class Scores final : public Module {
 public:
  // K and V are the widths of key and value heads. InputError where heads cannot be paired.
  Scores(const ScoreOptions& options, int64_t heads, int64_t head_dim, int64_t value_dim, const Site& site);
  // q [B, T, H, K], k [B, S, G, K], v [B, S, G, V] -> [B, T, H, V]
  at::Tensor operator()(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                        const ops::Mask& mask) const;

 private:
  at::Tensor lambda() const;

  ScoreOptions o_;
  std::shared_ptr<Parameter> q1_, k1_, q2_, k2_;  // [K]; null unless differential
  Norm norm_;
};

}  // namespace weft
