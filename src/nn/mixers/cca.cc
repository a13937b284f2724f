// Compressed convolutional attention: queries and keys are mixed over the last few tokens, half of the values come from
// the token before. Figliolia et al. 2025, arXiv:2510.04476, as in ZAYA1.
//   q, k = W_q x, W_k x;  m_q = (q + k') / 2, k' the key of q's group;  m_k = mean of m_q over a group
//   [q, k] <- conv2(conv1([q, k])) + [m_q, m_k]     conv1 depthwise, conv2 within each head, both causal with bias
//   v = [W_v x_t, W_d x_{t-1}]
//   q, k <- sqrt(K) q / |q|, tau sqrt(K) k / |k|    tau learned for each key head;   then rope and attention
//
// H query heads, G key heads, K width of a head. Before a document's first token conv1 sees zeros and conv2 what conv1
// makes of them, its bias; W_d x_{-1} is the bias of W_d.
// State: k, v, slots as attention's; "qk" [B, W1 + W2 - 2, (H + G) K] and "v_delayed" [B, 1, G K / 2], what the
// projections gave for the last tokens.
#include <cmath>
#include <limits>

#include "base/error.h"
#include "nn/mixer.h"
#include "nn/mixers/heads.h"
#include "nn/mixers/history.h"
#include "nn/mixers/key_cache.h"
#include "nn/mixers/rotary.h"
#include "ops/attention/attention.h"

namespace weft {
namespace {

// x scaled to a length of sqrt(K).
at::Tensor unit_heads(const at::Tensor& x) {
  const double least = x.scalar_type() == at::kDouble  ? std::numeric_limits<double>::epsilon()
                       : x.scalar_type() == at::kFloat ? std::numeric_limits<float>::epsilon()
                                                       : 0x1p-7;
  const auto length = at::linalg_vector_norm(x, 2, {-1}, true).clamp_min(least);
  return x * (std::sqrt(static_cast<double>(x.size(-1))) / length);
}

class CompressedConvAttention final : public SequenceMixer {
 public:
  struct Options {
    int64_t heads = 4, kv_heads = 0, head_dim = 0, conv = 2, head_conv = 2, window = 0;
    RotaryOptions rotary;
    bool bias = false;
    void fields(Fields& f) {
      f("heads", heads, "H, query heads", at_least(1));
      f("kv_heads", kv_heads, "G, key and value heads; 0 means as many as heads", at_least(0));
      f("head_dim", head_dim, "K, width of one head; 0 means width / heads", at_least(0));
      f("conv", conv, "W1, width of the depthwise convolution of q and k", at_least(1));
      f("head_conv", head_conv, "W2, width of the convolution within each head", at_least(1));
      f("window", window, "see only the latest so many tokens; 0 means all", at_least(0));
      rotary.fields(f);
      f("bias", bias, "biases on all projections");
    }
  };

  CompressedConvAttention(const Options& options, const Site& site)
      : o_(resolved(options, site)),
        rotary_(o_.rotary, o_.head_dim, site.where),
        q_(linear("q", site.width, o_.heads * o_.head_dim, {.bias = o_.bias})),
        k_(linear("k", site.width, o_.kv_heads * o_.head_dim, {.bias = o_.bias})),
        v_(linear("v", site.width, half(), {.bias = o_.bias})),
        v_delayed_(linear("v_delayed", site.width, half())),
        out_(linear("out", o_.heads * o_.head_dim, site.width,
                    {.bias = o_.bias, .scale = site.residual_init()})) {
    const auto vector = ParameterRules{.role = ParameterRules::Role::vector};
    if (o_.bias) v_delayed_bias_ = parameter("v_delayed.bias", {half()}, init::constant(0), vector);
    const auto bound = [](int64_t inputs) { return 1.0 / std::sqrt(static_cast<double>(inputs)); };
    const int64_t channels = groups() * o_.head_dim, inputs = o_.head_dim * o_.head_conv;
    conv_ =
        vector_parameter("conv.weight", {channels, o_.conv}, init::uniform(-bound(o_.conv), bound(o_.conv)));
    conv_bias_ = vector_parameter("conv.bias", {channels}, init::constant(0));
    head_conv_ = parameter("head_conv.weight", {channels, o_.head_dim, o_.head_conv},
                           init::uniform(-bound(inputs), bound(inputs)), vector);
    head_conv_bias_ = vector_parameter("head_conv.bias", {channels}, init::constant(0));
    temperature_ = vector_parameter("temperature", {o_.kv_heads}, init::constant(1));
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    auto [q, k] = queries_and_keys(q_(x), k_(x), state, context);
    const auto v = values(x, state, context);
    if (!rotary_.by_length()) k = rotary_(k, context.positions);
    Keys keys = extend_key_cache(k, v, o_.window, state, context);
    q = rotate(q, context.positions, context.segments, context);
    if (rotary_.by_length()) keys.k = rotate(keys.k, keys.positions, keys.segments, context);
    const ops::Mask mask{.causal = context.causal,
                         .window = o_.window,
                         .q_positions = context.positions,
                         .k_positions = keys.positions,
                         .q_segments = keys.segments.defined() ? context.segments : at::Tensor(),
                         .k_segments = keys.segments};
    return out_(ops::attention(q, keys.k, keys.v, mask).out.flatten(2));
  }

  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    start_key_cache(state, batch, o_.kv_heads, o_.head_dim, o_.head_dim, options);
    state.set("qk", at::zeros({batch, past(), groups() * o_.head_dim}, options));
    state.set("v_delayed", at::zeros({batch, 1, half()}, options));
    return state;
  }
  int64_t state_bytes(int64_t tokens, at::ScalarType dtype) const override {
    const int64_t tails = past() * groups() * o_.head_dim + half();
    return key_cache_bytes(tokens, o_.window, o_.kv_heads, o_.head_dim, o_.head_dim, dtype) +
           tails * static_cast<int64_t>(c10::elementSize(dtype));
  }
  double op_flops(int64_t context) const override {
    const int64_t seen = o_.window > 0 ? std::min(context, o_.window) : context;
    const int64_t convolution = groups() * o_.head_dim * (o_.conv + o_.head_dim) * o_.head_conv;
    return 4.0 * static_cast<double>(o_.heads * o_.head_dim * seen) + 2.0 * static_cast<double>(convolution);
  }
  std::vector<std::string> ops() const override { return {"attention", "rope"}; }

 private:
  static Options resolved(Options o, const Site& site) {
    if (o.kv_heads == 0) o.kv_heads = o.heads;
    require(o.heads % o.kv_heads == 0, "{}: heads {} is not a multiple of kv_heads {}", site.where, o.heads,
            o.kv_heads);
    o.head_dim = head_dim_of(o.head_dim, o.heads, site);
    require(o.kv_heads * o.head_dim % 2 == 0, "{}: kv_heads {} times head_dim {} must be even", site.where,
            o.kv_heads, o.head_dim);
    return o;
  }
  int64_t groups() const { return o_.heads + o_.kv_heads; }
  int64_t half() const { return o_.kv_heads * o_.head_dim / 2; }
  int64_t past() const { return o_.conv + o_.head_conv - 2; }
  at::Tensor heads(const at::Tensor& x) const { return x.unflatten(-1, {-1, o_.head_dim}); }

  // What conv2 makes of conv1 of [q, k], [B, T, H + G, K].
  at::Tensor convolved(const History& qk) const {
    const auto type = qk.lag(0).scalar_type();
    const auto w1 = conv_->value.to(type), w2 = head_conv_->value.to(type);
    auto y = heads(head_conv_bias_->value.to(type));
    for (int64_t j = 0; j < o_.head_conv; ++j) {
      auto inner = conv_bias_->value.to(type);
      for (int64_t i = 0; i < o_.conv; ++i) inner = inner + qk.lag(i + j) * w1.select(1, o_.conv - 1 - i);
      const auto taps =
          w2.select(2, o_.head_conv - 1 - j).unflatten(0, {-1, o_.head_dim});  // [H + G, out, in]
      y = y + at::einsum("bthi,hoi->btho", {heads(inner), taps});
    }
    return y;
  }

  std::pair<at::Tensor, at::Tensor> queries_and_keys(const at::Tensor& q, const at::Tensor& k, State& state,
                                                     const Context& context) const {
    const History past(state.at("qk"), at::cat({q, k}, -1), context);
    const auto mixed = convolved(past);
    state.set("qk", past.state());
    const int64_t each = o_.heads / o_.kv_heads;
    const auto mean_q = (heads(q) + heads(k).repeat_interleave(each, 2)) / 2;
    const auto mean_k = mean_q.unflatten(2, {o_.kv_heads, each}).mean(3);
    const auto temperature = temperature_->value.to(q.scalar_type()).unsqueeze(-1);
    return {unit_heads(mixed.narrow(2, 0, o_.heads) + mean_q),
            unit_heads(mixed.narrow(2, o_.heads, o_.kv_heads) + mean_k) * temperature};
  }

  at::Tensor values(const at::Tensor& x, State& state, const Context& context) const {
    const History past(state.at("v_delayed"), v_delayed_(x), context);
    state.set("v_delayed", past.state());
    auto delayed = past.lag(1);
    if (v_delayed_bias_) delayed = delayed + v_delayed_bias_->value.to(x.scalar_type());
    return heads(at::cat({v_(x), delayed}, -1));
  }

  at::Tensor rotate(const at::Tensor& x, const at::Tensor& positions, const at::Tensor& segments,
                    const Context& context) const {
    if (!rotary_.by_length()) return rotary_(x, positions);
    return rotary_(x, positions, document_lengths(positions, segments, context));
  }

  Options o_;
  Rotary rotary_;
  Linear q_, k_, v_, v_delayed_, out_;
  std::shared_ptr<Parameter> v_delayed_bias_, conv_, conv_bias_, head_conv_, head_conv_bias_, temperature_;
};
const Register<CompressedConvAttention> register_cca{
    "cca", "attention with convolved queries and keys (CCA, ZAYA1)"};

}  // namespace
}  // namespace weft
