// H3: a shift and a diagonal state space between products, after linear attention. Fu et al. 2022, arXiv:2212.14052.
//   q, k, v = W x + b;  k <- C * k + D_k k        C: taps over the last `shift` tokens
//   S[i, j] = SSM_diag(k_i v_j) for i, j in a head;  y_j = W_o sum_i q_i S[i, j]
// The reference's shift state space with B = e_1 is this convolution with C itself.
//
// H heads of width P, N states of a channel of the diagonal part, E = H P P channels of it.
// State: shift [B, N_s - 1, D] in the activation type; h [B, E, N / 2, 2, 1] fp32.
#include <cmath>

#include "base/error.h"
#include "nn/mixers/long_filter.h"
#include "nn/mixers/ssm.h"

namespace weft {
namespace {

class H3 final : public SequenceMixer {
 public:
  struct Options {
    int64_t head_dim = 1, shift = 64;
    DiagonalParameters::Options ssm;
    void fields(Fields& f) {
      f("head_dim", head_dim, "P, width of a head; each has P * P channels of the diagonal state space",
        at_least(1));
      f("shift", shift, "tokens that the shift state space remembers", at_least(2));
      ssm.fields(f);
    }
  };

  H3(const Options& options, const Site& site)
      : o_(options),
        width_(site.width),
        qkv_(linear("qkv", width_, 3 * width_, {.bias = true})),
        out_(linear("out", width_, width_, {.bias = true, .scale = site.residual_init()})),
        ssm_(options.ssm, width_ * options.head_dim, site.where) {
    require(width_ % o_.head_dim == 0, "{}: head_dim {} does not divide the width {}", site.where,
            o_.head_dim, width_);
    add_child("ssm", ssm_);
    const double bound = 1 / std::sqrt(static_cast<double>(o_.shift));
    shift_ = vector_parameter("shift.C", {width_, o_.shift}, init::uniform(-bound, bound));
    skip_ = vector_parameter("shift.D", {width_}, init::normal(1));
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    const auto parts = qkv_(x).chunk(3, -1);
    const auto k = run_filter(shift_->value, parts[1], state, context, "shift") + skipped(parts[1]);
    const auto product = outer(k, parts[2]);
    return finish(parts[0], run_bank(ssm_.bank(), product, state, context));
  }
  at::Tensor step(const at::Tensor& x, State& state, const Context&) override {
    const auto parts = qkv_(x).chunk(3, -1);
    const auto k = step_filter(shift_->value, parts[1], state, "shift") + skipped(parts[1]);
    return finish(parts[0], step_bank(ssm_.bank(), outer(k, parts[2]), state));
  }
  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    add_filter_state(state, batch, width_, o_.shift, options, "shift");
    state.set("h", bank_state(batch, width_ * o_.head_dim, ssm_.states(), true, options));
    return state;
  }
  double op_flops(int64_t) const override {
    return static_cast<double>(width_ * (2 * o_.shift + o_.head_dim * (12 * ssm_.states() + 4)));
  }
  std::vector<std::string> ops() const override { return {"conv"}; }

 private:
  at::Tensor skipped(const at::Tensor& k) const { return skip_->value.to(k.scalar_type()) * k; }
  at::Tensor heads(const at::Tensor& x) const { return x.unflatten(-1, {-1, o_.head_dim}); }
  at::Tensor outer(const at::Tensor& k, const at::Tensor& v) const {  // [B, T, H P P]
    return (heads(k).unsqueeze(-1) * heads(v).unsqueeze(-2)).flatten(2);
  }
  at::Tensor finish(const at::Tensor& q, const at::Tensor& s) const {
    const auto sums = s.unflatten(-1, {-1, o_.head_dim, o_.head_dim}).to(q.scalar_type());
    return out_((heads(q).unsqueeze(-1) * sums).sum(-2).flatten(2));
  }

  Options o_;
  int64_t width_;
  Linear qkv_, out_;
  DiagonalParameters ssm_;
  std::shared_ptr<Parameter> shift_, skip_;
};
const Register<H3> register_h3{"h3",
                               "shift and diagonal state spaces between products (H3); recall without "
                               "attention, trained as convolutions"};

}  // namespace
}  // namespace weft
