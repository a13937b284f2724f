// pLSTM in one dimension: linear attention whose read and write have gates of their own. Poppel et al. 2025,
// arXiv:2506.11997.
//   q, k, v = W_q x, W_k x, W_v x                              one row for each head
//   S, M = sigmoid(W x + b), D = sigmoid(b)                    source, mark, direct: scalars of a head
//   T = tanh(5 (W x + b))                                      transition, of either sign
//   C_t = T_t C_{t-1} + S_t k_t v_t'
//   h_t = (M_t C_{t-1}' q_t + D_t (q_t.k_t) v_t) / sqrt(K);    y_t = W_o RMSNorm(h_t) of each head
//
// It runs on linear attention that reads before it writes, with a decay |T_t|. Signs move to the rows: with P_t
// the product of the signs up to t, P_t C_t decays by |T_t|, takes k_t times S_t P_t, and is read by q_t times
// M_t P_{t-1}. A product of signs that runs across a document's start is harmless: it is constant after it.
//
// H heads, K width of a key and of a value. State: C [B, H, K, K] fp32.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <cmath>

#include "nn/mixer.h"
#include "nn/mixers/heads.h"
#include "nn/mixers/plstm_gates.h"
#include "nn/mixers/step_size.h"
#include "ops/linear_attention/linear_attention.h"
#include "ops/shape.h"

namespace weft {
namespace {

class Plstm final : public SequenceMixer {
 public:
  struct Options {
    int64_t heads = 4, head_dim = 0;
    double gate_std = 0;
    void fields(Fields& f) {
      f("heads", heads, "H, heads", at_least(1));
      f("head_dim", head_dim, "K, width of one head; 0 means width / heads", at_least(0), at_most(256));
      f("gate_std", gate_std, "of the gates' input weights before training; 0 starts from constant gates",
        at_least(0));
    }
  };

  Plstm(const Options& options, const Site& site)
      : o_(options), head_dim_(head_dim_of(o_.head_dim, o_.heads, site)), inner_(o_.heads * head_dim_) {
    const LinearOptions projection{.scale = kPlstmProjection};
    q_ = linear("q", site.width, inner_, projection);
    k_ = linear("k", site.width, inner_, projection);
    v_ = linear("v", site.width, inner_, projection);
    out_ = linear("out", inner_, site.width, projection);
    gates_ = linear("gates", site.width, kGates * o_.heads, plstm_gate_options(o_.gate_std, site.width));
    bias_ = vector_parameter("gates.bias", {kGates, o_.heads},
                             plstm_gate_bias({kPlstmSource, kPlstmMark, kPlstmTransition}));
    direct_ = vector_parameter("direct", {o_.heads}, init::constant(kPlstmDirect));
    norm_ = norm("norm", Norm::Kind::rms, head_dim_, site.norm_eps);
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    auto in = inputs(x, context);
    in.problem.initial_state = state.at("C");
    const auto result = ops::linear_attention(in.problem);
    state.set("C", in.sign * result.state);
    return finish(result.y, in);
  }

  at::Tensor step(const at::Tensor& x, State& state, const Context& context) override {
    auto in = inputs(x, context);
    auto& c = state.writable("C");
    in.problem.initial_state = c;
    const auto y = ops::linear_attention_step(in.problem).y;
    c.mul_(in.sign);
    return finish(y, in);
  }

  Summary summary(const at::Tensor& x, const State&, const Context& context) override {
    const auto in = inputs(x, context);
    const auto span = ops::linear_attention_summary(in.problem);
    Summary summary;
    summary.maps["C"] = {in.sign * span.factor, in.sign * span.offset, span.matrix};
    return summary;
  }

  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    state.set("C", at::zeros({batch, o_.heads, head_dim_, head_dim_}, state_options(options)));
    return state;
  }

  double op_flops(int64_t) const override {
    return static_cast<double>(4 * o_.heads * head_dim_ * head_dim_);
  }
  std::vector<std::string> ops() const override { return {"linear_attention", "norm"}; }

 private:
  static constexpr int64_t kGates = 3;

  struct Inputs {
    ops::LinearAttention problem;  // without the initial state
    at::Tensor own;                // [B, T, H, K], what a token reads of itself
    at::Tensor sign;               // [B, H, 1, 1], of the state behind the last token
  };

  Inputs inputs(const at::Tensor& x, const Context& context) const {
    const auto wide = accumulate_type(x);
    const auto head = [&](const at::Tensor& t) { return t.unflatten(-1, {o_.heads, head_dim_}); };
    const auto q = head(q_(x)), k = head(k_(x)), v = head(v_(x));
    const auto logits = (gates_(x.to(wide)).unflatten(-1, {kGates, o_.heads}) + bias_->value).unbind(2);
    const auto source = at::sigmoid(logits[0]), mark = at::sigmoid(logits[1]);  // [B, T, H]
    const auto sign = at::where(logits[2].detach() < 0, -1.0, 1.0).to(wide);
    const auto signs = sign.cumprod(1);  // P_t
    const auto own = at::sigmoid(direct_->value).to(wide) * (q.to(wide) * k.to(wide)).sum(-1) /
                     std::sqrt(static_cast<double>(head_dim_));
    const auto last = x.size(1) > 0 ? signs.select(1, -1) : at::ones({x.size(0), o_.heads}, signs.options());
    return {{.q = q * (mark * signs * sign).unsqueeze(-1).to(q.scalar_type()),
             .k = k,
             .v = v,
             .log_decay = log_abs_transition(logits[2]),
             .write = source * signs,
             .bonus = at::zeros({o_.heads, head_dim_}, q.options().dtype(wide)),
             .starts = context.starts},
            own.unsqueeze(-1) * v.to(wide),
            last.unsqueeze(-1).unsqueeze(-1)};
  }

  at::Tensor finish(const at::Tensor& before, const Inputs& in) const {
    return out_(norm_((before + in.own).to(before.scalar_type())).flatten(2));
  }

  Options o_;
  int64_t head_dim_, inner_;
  Linear q_, k_, v_, out_, gates_;
  std::shared_ptr<Parameter> bias_, direct_;
  Norm norm_;
};
const Register<Plstm> register_plstm{"plstm",
                                     "linear attention with source, transition and mark gates (pLSTM in "
                                     "1-D), transitions of either sign; use it for "
                                     "sequences beside plstm_2d, or where a state has to change sign"};

}  // namespace
}  // namespace weft
