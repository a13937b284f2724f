// LSTM with one block of recurrent weights for each head. Hochreiter and Schmidhuber 1997; heads as in Pöppel
// et al. 2024, arXiv:2412.07752.
//   i, f, z, o = W x + R h + b;  c = sigmoid(f) c + sigmoid(i) tanh(z);  h = sigmoid(o) tanh(c);  y = W_out h
//
// H heads of width K. State: cells [B, 2, H, K] fp32, h then c.
#include <cmath>

#include "base/error.h"
#include "nn/mixer.h"
#include "nn/mixers/heads.h"
#include "nn/mixers/step_size.h"
#include "ops/rnn/rnn.h"

namespace weft {
namespace {

class Lstm final : public SequenceMixer {
 public:
  struct Options {
    int64_t heads = 1, head_dim = 0;
    void fields(Fields& f) {
      f("heads", heads, "H, heads with recurrent weights of their own", at_least(1));
      f("head_dim", head_dim, "K, width of one head; 0 means width / heads", at_least(0));
    }
  };

  Lstm(const Options& options, const Site& site)
      : o_(resolved(options, site)),
        size_(o_.heads * o_.head_dim),
        in_(linear("in", site.width, kGates * size_)),
        out_(linear("out", size_, site.width, {.scale = site.residual_init()})) {
    recurrent_ = parameter("recurrent", {kGates, o_.heads, o_.head_dim, o_.head_dim},
                           init::normal(1.0 / std::sqrt(3.0 * static_cast<double>(o_.head_dim))));
    bias_ = vector_parameter("bias", {kGates, o_.heads, o_.head_dim}, [](at::Tensor& value, at::Generator&) {
      value.zero_();
      value.select(0, 1).fill_(1);  // forget gate: remember at the start of training
    });
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    auto result = ops::rnn({.cell = "lstm",
                            .wx = in_(x).unflatten(-1, {kGates, o_.heads, o_.head_dim}),
                            .recurrent = recurrent_->value,
                            .bias = bias_->value,
                            .initial_state = state.at("cells").transpose(0, 1),
                            .starts = context.starts});
    state.set("cells", result.state.transpose(0, 1));
    return out_(result.h.flatten(2));
  }

  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    state.set("cells", at::zeros({batch, 2, o_.heads, o_.head_dim}, state_options(options)));
    return state;
  }

  Summary summary(const at::Tensor&, const State&, const Context&) override {
    throw Unsupported(
        "lstm has no affine summary: its state is a nonlinear function of the state before; run spans in "
        "order");
  }

  double op_flops(int64_t) const override { return 0; }  // the recurrent weights count as matrices
  std::vector<std::string> ops() const override { return {"rnn"}; }

 private:
  static constexpr int64_t kGates = 4;

  static Options resolved(Options o, const Site& site) {
    o.head_dim = head_dim_of(o.head_dim, o.heads, site);
    return o;
  }

  Options o_;
  int64_t size_;
  Linear in_, out_;
  std::shared_ptr<Parameter> recurrent_, bias_;
};
const Register<Lstm> register_lstm{"lstm", "LSTM with heads"};

}  // namespace
}  // namespace weft
