#include "nn/mixers/scores.h"

#include <ATen/Functions.h>

#include <cmath>

#include "base/error.h"
#include "ops/shape.h"

namespace weft {
namespace {

constexpr double kPairNormEps = 1e-5;  // as in the paper's code

// Member `which` of each pair of neighbouring heads: [B, T, H, K] -> [B, T, H / 2, K]
at::Tensor of_pairs(const at::Tensor& x, int64_t which) { return x.unflatten(2, {-1, 2}).select(3, which); }

}  // namespace

void ScoreOptions::fields(Fields& f) {
  f("scale", scale, "of the scores; 0 means 1 / sqrt(K)", at_least(0));
  f("softcap", softcap, "c: scores become c tanh(scores / c); 0 means none", at_least(0));
  f("differential", differential,
    "subtract the softmax of odd heads from that of even ones (needs pairs of heads)");
  f("lambda_init", lambda_init,
    "constant part of the factor of the second softmax; 0 means 0.8 - 0.6 exp(-0.3 l) in layer l from 0",
    at_least(0), below(1));
}

Scores::Scores(const ScoreOptions& options, int64_t heads, int64_t head_dim, int64_t value_dim,
               const Site& site)
    : o_(options) {
  if (!o_.differential) return;
  require(heads % 2 == 0, "{}: differential attention pairs heads; {} of them are odd", site.where, heads);
  if (o_.lambda_init == 0) o_.lambda_init = 0.8 - 0.6 * std::exp(-0.3 * static_cast<double>(site.layer));
  const auto vector = [&](const char* name) { return vector_parameter(name, {head_dim}, init::normal(0.1)); };
  q1_ = vector("lambda_q1"), k1_ = vector("lambda_k1"), q2_ = vector("lambda_q2"), k2_ = vector("lambda_k2");
  norm_ = norm("norm", Norm::Kind::rms, 2 * value_dim, kPairNormEps);
}

at::Tensor Scores::lambda() const {
  const auto factor = [](const Parameter& a, const Parameter& b) {
    return at::exp((a.value * b.value).sum());
  };
  return factor(*q1_, *k1_) - factor(*q2_, *k2_) + o_.lambda_init;
}

at::Tensor Scores::operator()(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                              const ops::Mask& mask) const {
  const ops::AttentionOptions options{.scale = o_.scale, .softcap = o_.softcap};
  if (!o_.differential) return ops::attention(q, k, v, mask, options).out;
  require(k.size(2) % 2 == 0,
          "differential attention: the keys are {} [B, S, kv_heads, head_dim]; their heads must "
          "be even in number",
          shape_text(k));
  const auto values = v.unflatten(2, {-1, 2}).flatten(3);  // [B, S, G / 2, 2 V]
  const auto read = [&](int64_t which) {
    return ops::attention(of_pairs(q, which), of_pairs(k, which), values, mask, options).out;
  };
  const auto y = read(0) - lambda().to(q.scalar_type()) * read(1);  // [B, T, H / 2, 2 V]
  return (norm_(y) * (1 - o_.lambda_init)).unflatten(3, {2, -1}).flatten(2, 3);
}

}  // namespace weft
