// DeltaNet: a matrix state that replaces what a key recalls instead of adding to it. Yang et al. 2024,
// arXiv:2406.06484.
//   q, k, v = silu(conv(W_qkv x));  q, k to unit length per head
//   beta = sigmoid(W_b x) (times 2 with negative_eigenvalues)   fp32
//   S_t = (I - beta_t k_t k_t') S_{t-1} + beta_t k_t v_t'
//   y_t = W_o RMSNorm(S_t' q_t / sqrt(K))
//
// H heads of key width K and value width V, W width of the convolution.
// State: conv [B, W - 1, H (2 K + V)] in the activation type, S [B, H, K, V] fp32.
#include <cmath>

#include "nn/mixer.h"
#include "nn/mixers/delta_rows.h"
#include "nn/mixers/heads.h"
#include "nn/mixers/linear_state.h"
#include "ops/shape.h"

namespace weft {
namespace {

class DeltaNet final : public SequenceMixer {
 public:
  struct Options {
    int64_t heads = 4, head_dim = 0, value_dim = 0, conv = 4;
    bool negative_eigenvalues = false;
    void fields(Fields& f) {
      f("heads", heads, "H, heads", at_least(1));
      f("head_dim", head_dim, "K, width of a key head; 0 means width / heads", at_least(0), at_most(256));
      f("value_dim", value_dim, "V, width of a value head; 0 means K", at_least(0), at_most(256));
      f("conv", conv, "W, width of the short convolution on q, k, v", at_least(2), at_most(16));
      f("negative_eigenvalues", negative_eigenvalues, "erase strength in [0, 2] instead of [0, 1]");
    }
  };

  DeltaNet(const Options& options, const Site& site)
      : o_(resolved(options, site)),
        sizes_{o_.heads, o_.head_dim, o_.heads, o_.value_dim},
        qkv_(linear("qkv", site.width, sizes_.channels())),
        beta_(linear("beta", site.width, o_.heads)),
        norm_(norm("norm", Norm::Kind::rms, o_.value_dim, site.norm_eps)),
        out_(linear("out", o_.heads * o_.value_dim, site.width, {.scale = site.residual_init()})) {
    const double bound = 1.0 / std::sqrt(static_cast<double>(o_.conv));
    conv_ = vector_parameter("conv.weight", {sizes_.channels(), o_.conv}, init::uniform(-bound, bound));
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    return forward(x, state, context, attend);
  }
  at::Tensor step(const at::Tensor& x, State& state, const Context& context) override {
    return forward(x, state, context, attend_step);
  }
  Summary summary(const at::Tensor& x, const State& state, const Context& context) override {
    const auto in = inputs(x, state, context);
    Summary summary;
    summary.maps["S"] = attend_summary(in.problem);
    summary.rest.set("conv", in.conv_state);
    return summary;
  }

  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    state.set("conv", at::zeros({batch, o_.conv - 1, sizes_.channels()}, options));
    state.set("S", matrix_state(batch, o_.heads, o_.head_dim, o_.value_dim, options));
    return state;
  }

  double op_flops(int64_t) const override {
    return static_cast<double>(6 * o_.heads * o_.head_dim * o_.value_dim + 2 * sizes_.channels() * o_.conv);
  }
  std::vector<std::string> ops() const override { return {"conv", "linear_attention", "norm"}; }

 private:
  struct Inputs {
    ops::LinearAttention problem;  // without the initial state
    at::Tensor conv_state;
  };

  static Options resolved(Options o, const Site& site) {
    o.head_dim = head_dim_of(o.head_dim, o.heads, site);
    if (o.value_dim == 0) o.value_dim = o.head_dim;
    return o;
  }

  Inputs inputs(const at::Tensor& x, const State& state, const Context& context) const {
    const auto rows = delta_rows(qkv_(x), conv_->value, state.at("conv"), context.starts, sizes_);
    auto beta = at::sigmoid(beta_(x).to(accumulate_type(x)));
    if (o_.negative_eigenvalues) beta = 2 * beta;
    return {{.q = rows.q, .k = rows.k, .v = rows.v, .beta = beta, .starts = context.starts}, rows.conv_state};
  }

  at::Tensor forward(const at::Tensor& x, State& state, const Context& context, Attend form) const {
    const auto in = inputs(x, state, context);
    state.set("conv", in.conv_state);
    return out_(norm_(form(in.problem, state)).flatten(2));
  }

  Options o_;
  DeltaSizes sizes_;
  Linear qkv_, beta_;
  Norm norm_;
  Linear out_;
  std::shared_ptr<Parameter> conv_;
};
const Register<DeltaNet> register_delta_net{
    "delta_net",
    "DeltaNet: matrix state with the delta rule and no decay; use it for recall of keys and values, and "
    "with negative_eigenvalues for state tracking"};

}  // namespace
}  // namespace weft
