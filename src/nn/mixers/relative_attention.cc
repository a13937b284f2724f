// Attention without rotary positions: each query draws a bias over backward distances from learned profiles; keys and
// values pass short convolutions. Inkling and Inkling-2 (Thinking Machines 2026).
//   q = f(W_q x), k = g(conv(W_k x)), v = h(conv(W_v x)), r = c(W_r x)
//   score(t, s) = scale q_t k_s + sum_j r_tj P[j, t - s]     for distances below E, without the sum beyond
//   y = W_o (sigmoid(W_g x) * attention)                     the softmax also over a sink of score W_s x, with no value
// norm rms:   f, g RMS norms with weights shared by the heads; h, c nothing
// norm clip:  f(q) = q u shortened to a length of qk_clip at most, u learned for each head; g(k) = k shortened alike; h an
//             RMS norm without weights; c as f, to rel_clip
// log scaling: q and r times 1 + alpha log(max((p + 1) / floor, 1)) at position p
// conv:       u_t + sum_j w_j u_{t-j}, of W taps for each channel; dynamic: w_j has a part of each key head's own that is
//             projected from the input, and the sum is divided by sqrt(2 W + 1); scaled: by sqrt(W + 1)
//
// H query heads, G key heads, K width of a head. With inputs: 3, q (and r, gate, sink), k, v have an input each.
// State: k, v, slots as attention's; "k_conv", "v_conv" [B, max(W, 2) - 1, G K], the last projections.
#include <cmath>

#include "base/error.h"
#include "nn/mixer.h"
#include "nn/mixers/heads.h"
#include "nn/mixers/history.h"
#include "nn/mixers/key_cache.h"
#include "ops/attention/relative.h"
#include "ops/conv/conv.h"
#include "ops/norm/norm.h"

namespace weft {
namespace {

// x shortened to a length of `longest` at most.
at::Tensor clipped(const at::Tensor& x, double longest) {
  const auto length = at::linalg_vector_norm(x, 2, {-1}, true);
  return x * (longest / (length + 1e-6)).clamp_max(1.0);
}

// The convolution of keys or of values.
class HeadConv final : public Module {
 public:
  HeadConv(int64_t input, int64_t heads, int64_t head_dim, int64_t taps, bool dynamic, bool scaled)
      : heads_(heads), channels_(heads * head_dim), taps_(taps), dynamic_(dynamic), scaled_(scaled) {
    const double bound = 1.0 / std::sqrt(static_cast<double>(taps));
    const auto shape =
        dynamic ? std::vector<int64_t>{taps, channels_} : std::vector<int64_t>{channels_, taps};
    weight_ = vector_parameter("weight", shape, init::uniform(-bound, bound));
    if (dynamic) projection_ = linear("dynamic", input, heads * taps);
  }

  // u [B, T, G K], x [B, T, D] -> [B, T, G K]
  at::Tensor operator()(const at::Tensor& u, const at::Tensor& x, State& state, const std::string& name,
                        const Context& context) const {
    if (dynamic_) return with_own_taps(u, x, state, name, context);
    const auto weight = taps_ == 1 ? at::constant_pad_nd(weight_->value, {1, 0}) : weight_->value;
    auto result = ops::short_conv(
        {.x = u, .weight = weight, .initial_state = state.at(name), .starts = context.starts});
    state.set(name, result.state);
    const auto y = result.y + u;
    return scaled_ ? y / std::sqrt(static_cast<double>(taps_) + 1.0) : y;
  }
  at::Tensor initial_state(int64_t batch, const at::TensorOptions& options) const {
    return at::zeros({batch, past(), channels_}, options);
  }
  int64_t past() const { return std::max<int64_t>(taps_, 2) - 1; }

 private:
  at::Tensor with_own_taps(const at::Tensor& u, const at::Tensor& x, State& state, const std::string& name,
                           const Context& context) const {
    const History history(state.at(name), u, context);
    state.set(name, history.state());
    const auto own = projection_(x).unflatten(-1, {heads_, taps_});  // [B, T, G, W]
    auto y = u.unflatten(-1, {heads_, -1});
    for (int64_t j = 0; j < taps_; ++j) {
      const auto taps = weight_->value.select(0, j).to(u.scalar_type()).unflatten(0, {heads_, -1});  // [G, K]
      y = y + (taps + own.select(-1, j).unsqueeze(-1)) * history.lag(j).unflatten(-1, {heads_, -1});
    }
    return y.flatten(2) / std::sqrt(2.0 * static_cast<double>(taps_) + 1.0);
  }

  int64_t heads_, channels_, taps_;
  bool dynamic_, scaled_;
  std::shared_ptr<Parameter> weight_;
  Linear projection_;
};

class RelativeAttention final : public SequenceMixer {
 public:
  struct Options {
    int64_t heads = 4, kv_heads = 0, head_dim = 0, window = 0, inputs = 1;
    int64_t rel_dim = 16, rel_extent = 64, conv = 4;
    bool dynamic_conv = false, scaled_conv = false, output_gate = false, sink = false;
    std::string qk_norm = "rms";
    double qk_clip = 1, rel_clip = 1, scale = 0, log_floor = 0, log_alpha = 0.1;
    void fields(Fields& f) {
      f("heads", heads, "H, query heads", at_least(1));
      f("kv_heads", kv_heads, "G, key and value heads; 0 means as many as heads", at_least(0));
      f("head_dim", head_dim, "K, width of one head; 0 means width / heads", at_least(0));
      f("window", window, "see only the latest so many tokens; 0 means all", at_least(0));
      f("inputs", inputs, "3: q, k and v are of inputs of their own; 1: of the same", at_least(1),
        at_most(3));
      f("rel_dim", rel_dim, "profiles over distances that a query may mix", at_least(1));
      f("rel_extent", rel_extent, "E, distances that get a bias, from 0", at_least(1));
      f("conv", conv, "W, width of the convolutions of keys and values", at_least(1), at_most(16));
      f("scaled_conv", scaled_conv, "divide the convolutions, if not dynamic, by sqrt(W + 1)");
      f("dynamic_conv", dynamic_conv, "taps of the convolutions depend on the token");
      f("qk_norm", qk_norm,
        "rms: of q and k, with weights; clip: q, k and the mix of profiles are shortened, v normed",
        one_of({"rms", "clip"}));
      f("qk_clip", qk_clip, "greatest length of heads of q and k (clip)", above(0));
      f("rel_clip", rel_clip, "greatest length of a head's mix of profiles (clip)", above(0));
      f("scale", scale, "of the scores; 0 means 1 / sqrt(K)", at_least(0));
      f("log_floor", log_floor,
        "tokens from which on q and biases grow by the logarithm of the position; 0: never", at_least(0));
      f("log_alpha", log_alpha, "how much they grow");
      f("output_gate", output_gate, "multiply by sigmoid(W_g x) before the output projection");
      f("sink", sink, "the softmax also runs over a score W_s x for each head that has no value");
    }
  };

  RelativeAttention(const Options& options, const Site& site)
      : o_(resolved(options, site)),
        clip_(o_.qk_norm == "clip"),
        eps_(site.norm_eps),
        q_(linear("q", site.width, o_.heads * o_.head_dim)),
        k_(linear("k", site.width, o_.kv_heads * o_.head_dim)),
        v_(linear("v", site.width, o_.kv_heads * o_.head_dim)),
        relative_(linear("relative", site.width, o_.heads * o_.rel_dim)),
        out_(linear("out", o_.heads * o_.head_dim, site.width, {.scale = site.residual_init()})),
        k_conv_(site.width, o_.kv_heads, o_.head_dim, o_.conv, o_.dynamic_conv, o_.scaled_conv),
        v_conv_(site.width, o_.kv_heads, o_.head_dim, o_.conv, o_.dynamic_conv, o_.scaled_conv) {
    add_child("k_conv", k_conv_);
    add_child("v_conv", v_conv_);
    profiles_ = parameter("profiles", {o_.rel_dim, o_.rel_extent}, init::normal(0.02),
                          {.role = ParameterRules::Role::vector});
    if (clip_) {
      q_scale_ = vector_parameter("q_scale", {o_.heads, o_.head_dim}, init::constant(1));
      relative_scale_ = vector_parameter("relative_scale", {o_.heads, o_.rel_dim}, init::constant(1));
    } else {
      q_norm_ = norm("q_norm", Norm::Kind::rms, o_.head_dim, site.norm_eps);
      k_norm_ = norm("k_norm", Norm::Kind::rms, o_.head_dim, site.norm_eps);
    }
    if (o_.output_gate) gate_ = linear("gate", site.width, o_.heads * o_.head_dim);
    if (o_.sink) sink_ = linear("sink", site.width, o_.heads);
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    const auto parts = x.chunk(o_.inputs, -1);
    const auto &xq = parts.front(), &xk = parts[parts.size() / 2], &xv = parts.back();
    const auto q = log_scaled(query(heads(q_(xq), o_.heads)), context);
    const auto relative = log_scaled(mix(heads(relative_(xq), o_.heads)), context);
    const auto k = key(heads(k_conv_(k_(xk), xk, state, "k_conv", context), o_.kv_heads));
    const auto v = value(heads(v_conv_(v_(xv), xv, state, "v_conv", context), o_.kv_heads));
    const Keys keys = extend_key_cache(k, v, o_.window, state, context);
    const ops::Mask mask{.causal = context.causal,
                         .window = o_.window,
                         .q_positions = context.positions,
                         .k_positions = keys.positions,
                         .q_segments = keys.segments.defined() ? context.segments : at::Tensor(),
                         .k_segments = keys.segments};
    const auto seen = ops::relative_attention(q, keys.k, keys.v, relative, profiles_->value, mask, o_.scale);
    auto y = seen.out;
    // A sink of score s takes exp(s) / (exp(lse) + exp(s)) of the weight.
    if (o_.sink) y = y * at::sigmoid(seen.lse - sink_(xq)).unsqueeze(-1).to(y.scalar_type());
    y = y.flatten(2);
    if (o_.output_gate) y = y * at::sigmoid(gate_(xq));
    return out_(y);
  }

  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    start_key_cache(state, batch, o_.kv_heads, o_.head_dim, o_.head_dim, options);
    state.set("k_conv", k_conv_.initial_state(batch, options));
    state.set("v_conv", v_conv_.initial_state(batch, options));
    return state;
  }
  int64_t inputs() const override { return o_.inputs; }
  int64_t state_bytes(int64_t tokens, at::ScalarType dtype) const override {
    const int64_t tails = 2 * k_conv_.past() * o_.kv_heads * o_.head_dim;
    return key_cache_bytes(tokens, o_.window, o_.kv_heads, o_.head_dim, o_.head_dim, dtype) +
           tails * static_cast<int64_t>(c10::elementSize(dtype));
  }
  double op_flops(int64_t context) const override {
    const int64_t seen = o_.window > 0 ? std::min(context, o_.window) : context;
    const int64_t biases = o_.heads * o_.rel_dim * o_.rel_extent,
                  convolutions = 2 * o_.kv_heads * o_.head_dim * o_.conv;
    return 4.0 * static_cast<double>(o_.heads * o_.head_dim * seen) +
           2.0 * static_cast<double>(biases + convolutions);
  }
  std::vector<std::string> ops() const override { return {"attention", "conv", "norm"}; }

 private:
  static Options resolved(Options o, const Site& site) {
    if (o.kv_heads == 0) o.kv_heads = o.heads;
    require(o.heads % o.kv_heads == 0, "{}: heads {} is not a multiple of kv_heads {}", site.where, o.heads,
            o.kv_heads);
    require(o.inputs != 2, "{}: inputs 2: expected 1 or 3", site.where);
    o.head_dim = head_dim_of(o.head_dim, o.heads, site);
    return o;
  }
  static at::Tensor heads(const at::Tensor& x, int64_t count) { return x.unflatten(-1, {count, -1}); }

  at::Tensor query(const at::Tensor& q) const {
    return clip_ ? clipped(q * q_scale_->value.to(q.scalar_type()), o_.qk_clip) : q_norm_(q);
  }
  at::Tensor key(const at::Tensor& k) const { return clip_ ? clipped(k, o_.qk_clip) : k_norm_(k); }
  at::Tensor value(const at::Tensor& v) const { return clip_ ? ops::rms_norm(v, {}, eps_) : v; }
  at::Tensor mix(const at::Tensor& r) const {
    return clip_ ? clipped(r * relative_scale_->value.to(r.scalar_type()), o_.rel_clip) : r;
  }
  at::Tensor log_scaled(const at::Tensor& x, const Context& context) const {
    if (o_.log_floor == 0) return x;
    const auto type = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    const auto growth = at::log(((context.positions + 1).to(type) / o_.log_floor).clamp_min(1.0));
    return x * (1.0 + o_.log_alpha * growth).unsqueeze(-1).unsqueeze(-1).to(x.scalar_type());
  }

  Options o_;
  bool clip_;
  double eps_;
  Linear q_, k_, v_, relative_, out_, gate_, sink_;
  HeadConv k_conv_, v_conv_;
  Norm q_norm_, k_norm_;
  std::shared_ptr<Parameter> profiles_, q_scale_, relative_scale_;
};
const Register<RelativeAttention> register_relative_attention{
    "relative_attention",
    "attention with learned biases over distances, convolved keys and values (Inkling)"};

}  // namespace
}  // namespace weft
