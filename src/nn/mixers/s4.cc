// S4: a state space for every channel whose matrix is diagonal plus low rank, from HiPPO. Gu et al. 2022,
// arXiv:2111.00396.
//   x' = (diag(lambda) - P P*) x + B u,   lambda = -exp(A_re_log) + i A_im,   step size exp(log_dt), bilinear rule
//   h_t = A h_{t-1} + b x_t;  m_t = 2 Re(C . h_t) + D x_t;  y_t = GLU(W GELU(m_t))
// Learned is C itself, not C (I - A^L) as in the paper, so weights do not depend on a length; the Cauchy form takes the
// product when it is asked for.
//
// E = D channels of N states, N / 2 complex ones kept, R rank of P. State: h [B, E, N, 1] fp32, real parts then
// imaginary ones.
#include <bit>
#include <cmath>

#include "base/error.h"
#include "nn/mixers/hippo.h"
#include "nn/mixers/ssm.h"
#include "nn/mixers/step_size.h"
#include "ops/shape.h"

namespace weft {
namespace {

class S4 final : public SequenceMixer {
 public:
  struct Options {
    int64_t states = 64, copies = 1;
    std::string measure = "legs", kernel = "powers", activation = "glu";
    double dt_min = 1e-3, dt_max = 0.1, lr_scale = 0.1;
    void fields(Fields& f) {
      f("states", states, "N, states of a channel; half as many complex ones are kept", at_least(2));
      f("copies", copies, "state matrices, each shared by width / copies channels", at_least(1));
      f("measure", measure, "HiPPO matrix at the start", one_of({"legs", "legt", "fourier"}));
      f("kernel", kernel, "how the taps are found: powers of the state matrix, or the paper's Cauchy sums",
        one_of({"powers", "cauchy"}));
      f("dt_min", dt_min, "smallest step size at the start", above(0));
      f("dt_max", dt_max, "largest step size at the start", above(0));
      f("ssm_lr_scale", lr_scale, "rate of step sizes, state matrices and input maps relative to the rest",
        above(0));
      f("activation", activation, "what follows the state space", ssm_activation());
    }
  };

  S4(const Options& options, const Site& site)
      : o_(options), width_(site.width), out_(o_.activation, width_, site) {
    require(o_.states % 2 == 0, "{}: states {} must be even, conjugate pairs are kept as one", site.where,
            o_.states);
    require(width_ % o_.copies == 0, "{}: copies {} does not divide the width {}", site.where, o_.copies,
            width_);
    require(o_.dt_min <= o_.dt_max, "{}: dt_min {} is larger than dt_max {}", site.where, o_.dt_min,
            o_.dt_max);
    const auto start = hippo::diagonalise(hippo::named(o_.measure, o_.states));
    const int64_t pairs = o_.states / 2;
    const auto rules = ssm_rules(o_.lr_scale);
    // legt and fourier have modes without decay of their own; P gives them theirs.
    const auto rate = at::log((-at::real(start.lambda)).clamp_min(1e-4));
    log_dt_ = parameter("log_dt", {width_}, init_log_step(o_.dt_min, o_.dt_max), rules);
    rate_ = parameter("A_re_log", {o_.copies, pairs}, init_rows(rate), rules);
    frequency_ = parameter("A_im", {o_.copies, pairs}, init_rows(at::imag(start.lambda).contiguous()), rules);
    p_ = parameter("P", {o_.copies, start.p.size(0), pairs, 2}, init_rows(start.p), rules);
    b_ = parameter("B", {o_.copies, pairs, 2}, init_rows(start.b), rules);
    c_ = parameter("C", {width_, pairs, 2}, init_complex_normal(std::sqrt(0.5)), ssm_rules(1));
    skip_ = vector_parameter("D", {width_}, init::normal(1));
    add_child("output", out_);
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    const auto result = convolve(x, state.at("h").squeeze(-1), context);
    if (result.state.defined()) state.set("h", result.state.unsqueeze(-1));
    return out_(result.y + skip_->value.to(result.y.scalar_type()) * x, x);
  }

  // In time linear in N: the inverse of the discrete matrix's factor is diagonal plus low rank too (Woodbury).
  at::Tensor step(const at::Tensor& x, State& state, const Context&) override {
    auto& stored = state.writable("h");
    const auto type = stored.scalar_type();
    const auto s = continuous();
    const auto real = stored.squeeze(-1).to(at::kDouble);
    const auto h =
        at::complex(real.slice(2, 0, o_.states / 2).contiguous(), real.slice(2, o_.states / 2).contiguous());
    const auto rate = (2 / s.dt).unsqueeze(-1);            // [E, 1]
    const auto inverse = at::reciprocal(rate - s.lambda);  // [E, N / 2]
    const auto u = x.to(at::kDouble).transpose(1, 2);      // [B, E, 1]
    const auto v = (rate + s.lambda) * h - spread(s.p, inner(s.p, h)) + 2 * s.b * u;
    const auto weighted = s.p * inverse.unsqueeze(1);  // [E, R, N / 2]
    const auto gram = at::eye(s.p.size(1), real.options()) +
                      2 * at::real(at::matmul(at::conj(s.p), weighted.transpose(1, 2)));  // [E, R, R]
    const auto solved = at::linalg_solve(gram, inner(s.p, inverse * v).unsqueeze(-1)).squeeze(-1);
    const auto next = inverse * (v - spread(s.p, solved));
    stored.copy_(at::cat({at::real(next), at::imag(next)}, 2).unsqueeze(-1));
    const auto m =
        2 * at::real((complex_of(c_) * next).sum(-1)).unsqueeze(1) + skip_->value.to(at::kDouble) * x;
    return out_(m.to(type), x);
  }

  Summary summary(const at::Tensor& x, const State& state, const Context& context) override {
    const auto after = convolve(x, at::zeros_like(state.at("h").squeeze(-1)), context).state;
    auto factor =
        at::linalg_matrix_power(ops::dplr_bilinear(continuous()).a, x.size(1)).to(after.scalar_type());
    factor = factor.unsqueeze(0);  // [1, E, N, N]
    if (context.starts.defined())
      factor = factor * context.starts.any(1).logical_not().view({-1, 1, 1, 1}).to(after.scalar_type());
    Summary summary;
    summary.maps["h"] = {factor, after.unsqueeze(-1), true};
    return summary;
  }

  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    state.set("h", at::zeros({batch, width_, o_.states, 1}, state_options(options)));
    return state;
  }
  double op_flops(int64_t) const override { return static_cast<double>(width_ * o_.states * 12); }
  std::vector<std::string> ops() const override { return {"conv"}; }

 private:
  // For every channel, fp64.
  ops::Dplr continuous() const {
    const int64_t sharing = width_ / o_.copies;
    const auto lambda =
        at::complex(-at::exp(rate_->value.to(at::kDouble)), frequency_->value.to(at::kDouble));
    return {lambda.repeat_interleave(sharing, 0), complex_of(p_).repeat_interleave(sharing, 0),
            complex_of(b_).repeat_interleave(sharing, 0), at::exp(log_dt_->value.to(at::kDouble))};
  }

  ops::LtiResult convolve(const at::Tensor& x, const at::Tensor& before, const Context& context) const {
    const auto system = continuous();
    const auto dense = ops::dplr_bilinear(system);
    const auto c = complex_of(c_);
    const auto c_real = 2 * at::cat({at::real(c), -at::imag(c)}, 1);  // [E, N]
    at::Tensor kernel;
    if (o_.kernel == "cauchy" && x.size(1) > 0) {
      const auto length =
          std::max<int64_t>(2, static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(x.size(1)))));
      const auto rest = ((c_real - ops::times_power(c_real, dense.a, length)) / 2).chunk(2, 1);
      const auto truncated = at::complex(rest[0].contiguous(), -rest[1]);
      kernel = ops::dplr_kernel(system, truncated.to(c10::toComplexType(accumulate_type(x))), length);
    }
    return ops::dense_ssm({.u = x,
                           .a = dense.a,
                           .b = dense.b,
                           .c = c_real,
                           .initial = before,
                           .starts = context.starts,
                           .kernel = kernel,
                           .keep_state = context.keep_state});
  }

  // P* h over both of each conjugate pair: real. p [E, R, N / 2], h [B, E, N / 2] -> [B, E, R]
  static at::Tensor inner(const at::Tensor& p, const at::Tensor& h) {
    return 2 * at::real((at::conj(p) * h.unsqueeze(2)).sum(-1));
  }
  // P w: [B, E, R] -> [B, E, N / 2]
  static at::Tensor spread(const at::Tensor& p, const at::Tensor& w) { return (p * w.unsqueeze(-1)).sum(2); }

  Options o_;
  int64_t width_;
  SsmOutput out_;
  std::shared_ptr<Parameter> log_dt_, rate_, frequency_, p_, b_, c_, skip_;
};
const Register<S4> register_s4{
    "s4",
    "state space with a HiPPO matrix, diagonal plus low rank (S4); use it where s4d falls "
    "short on very long signals"};

}  // namespace
}  // namespace weft
