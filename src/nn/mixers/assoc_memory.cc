// Gated associative memory: a short convolution beside a look-up in a learned bank of slots, both gated.
// Acharya 2025, arXiv:2509.00605.
//   l_t = conv(x)_t                                 causal, depthwise, with bias
//   a_t = softmax(M x_t);  g_t = M' a_t             no scale: x is normed, and slots have a norm of about one
//   y_t = sigmoid(W_l x_t + b_l) * l_t + sigmoid(W_g x_t + b_g) * g_t        no output projection
// The look-up reads weights, not the tokens before: only the convolution moves information between tokens, so a
// stack of L such layers sees L (W - 1) + 1 tokens. `fusion` sum drops the gates; local and global keep one path
// alone, without a gate. `temperature` and `values` are additions to the paper, off by default: slots that are
// read as values need not be those that are matched as keys.
//
// M slots, W width of the convolution. State: conv [B, W - 1, D] in the activation type; none for fusion global.
#include <cmath>

#include "nn/mixer.h"
#include "ops/conv/conv.h"

namespace weft {
namespace {

class AssocMemory final : public SequenceMixer {
 public:
  struct Options {
    int64_t slots = 512, conv = 3;
    std::string fusion = "gated";
    double temperature = 1.0;
    bool values = false;
    void fields(Fields& f) {
      f("slots", slots, "M, slots of the memory", at_least(1));
      f("conv", conv, "W, width of the short convolution", at_least(2), at_most(16));
      f("fusion", fusion,
        "gated: sigmoid gates on both paths; sum: both as they are; global, local: one path",
        one_of({"gated", "sum", "global", "local"}));
      f("temperature", temperature, "divides the scores before the softmax; 1 in the paper", above(0));
      f("values", values, "read out a second bank instead of the slots that were matched; not in the paper");
    }
  };

  AssocMemory(const Options& options, const Site& site) : o_(options), width_(site.width) {
    const auto like_linear =
        [](int64_t in) {  // what the paper's framework gives linear maps and convolutions
          const double bound = 1.0 / std::sqrt(static_cast<double>(in));
          return init::uniform(-bound, bound);
        };
    if (local()) {
      conv_ = vector_parameter("conv.weight", {width_, o_.conv}, like_linear(o_.conv));
      conv_bias_ = vector_parameter("conv.bias", {width_}, like_linear(o_.conv));
    }
    if (global()) {
      const double xavier = std::sqrt(6.0 / static_cast<double>(o_.slots + width_));
      memory_ = parameter("memory", {o_.slots, width_}, init::uniform(-xavier, xavier));
      if (o_.values) values_ = parameter("values", {o_.slots, width_}, init::uniform(-xavier, xavier));
    }
    if (o_.fusion == "gated") {
      gate_ = linear("gate", width_, 2 * width_);
      gate_bias_ = vector_parameter("gate.bias", {2 * width_}, like_linear(width_));
    }
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    at::Tensor from_tokens, from_memory;
    if (local()) {
      auto result = convolve(x, state, context);
      state.set("conv", result.state);
      from_tokens = result.y;
    }
    if (global()) from_memory = look_up(x);
    if (!global()) return from_tokens;
    if (!local()) return from_memory;
    if (o_.fusion == "sum") return from_tokens + from_memory;
    const auto gates = at::sigmoid(gate_(x) + gate_bias_->value.to(x.scalar_type())).chunk(2, -1);
    return gates[0] * from_tokens + gates[1] * from_memory;
  }

  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    if (local()) state.set("conv", at::zeros({batch, o_.conv - 1, width_}, options));
    return state;
  }

  Summary summary(const at::Tensor& x, const State& state, const Context& context) override {
    Summary summary;
    if (local()) summary.rest.set("conv", convolve(x, state, context).state);
    return summary;
  }

  // A bank that is matched and read out works twice for each weight.
  double op_flops(int64_t) const override {
    const int64_t read_out = global() && !o_.values ? 2 * o_.slots * width_ : 0;
    return static_cast<double>(read_out + (local() ? 2 * o_.conv * width_ : 0));
  }
  std::vector<std::string> ops() const override {
    return local() ? std::vector<std::string>{"conv"} : std::vector<std::string>{};
  }

 private:
  bool local() const { return o_.fusion != "global"; }
  bool global() const { return o_.fusion != "local"; }

  ops::ShortConvResult convolve(const at::Tensor& x, const State& state, const Context& context) const {
    return ops::short_conv({.x = x,
                            .weight = conv_->value,
                            .bias = conv_bias_->value,
                            .initial_state = state.at("conv"),
                            .starts = context.starts});
  }

  at::Tensor look_up(const at::Tensor& x) const {
    const auto keys = memory_->value.to(x.scalar_type());
    auto scores = at::linear(x, keys);  // [B, T, M]
    if (o_.temperature != 1.0) scores = scores / o_.temperature;
    return at::matmul(at::softmax(scores, -1), values_ ? values_->value.to(x.scalar_type()) : keys);
  }

  Options o_;
  int64_t width_;
  Linear gate_;
  std::shared_ptr<Parameter> conv_, conv_bias_, memory_, values_, gate_bias_;
};
const Register<AssocMemory> register_assoc_memory{"assoc_memory",
                                                  "short convolution and look-up in learned slots, gated "
                                                  "(GAM); reaches W - 1 tokens back a layer, so use it as a "
                                                  "cheap layer between mixers that reach further"};

}  // namespace
}  // namespace weft
