// Softmax attention with grouped queries, rotary positions, window, sinks, QK-norm and output gate.
// Vaswani et al. 2017, arXiv:1706.03762; grouped queries: Ainslie et al. 2023, arXiv:2305.13245; output gate:
// Qiu et al. 2025, arXiv:2505.06708.
//   q, k, v = W_q x, W_k x, W_v x;  q, k <- rope(norm(q)), rope(norm(k))
//   y = W_o (sigmoid(W_g x) * softmax(q k' / sqrt(K) + mask) v)
//
// H query heads, G key heads, K width of a head.
// State without a window: k, v [B, L, G, K] and slots [B, L], the position each column holds (-1: none). With
// a window w: a ring of sinks + max(w - 1, 1) columns; position p stands in column p while it is a sink, else
// in sinks + p mod (w - 1).
#include <cmath>

#include "base/error.h"
#include "nn/mixer.h"
#include "nn/mixers/heads.h"
#include "nn/mixers/keys.h"
#include "ops/attention/attention.h"
#include "ops/rope/rope.h"
#include "ops/shape.h"

namespace weft {
namespace {

class Attention final : public SequenceMixer {
 public:
  struct Options {
    int64_t heads = 4, kv_heads = 0, head_dim = 0;
    int64_t window = 0, sinks = 0;
    double rope = 10000;
    int64_t rope_dim = 0;
    bool rope_interleaved = false, qk_norm = false, output_gate = false, bias = false, output_bias = false;
    double scale = 0;
    void fields(Fields& f) {
      f("heads", heads, "H, query heads", at_least(1));
      f("kv_heads", kv_heads, "G, key and value heads; 0 means as many as heads", at_least(0));
      f("head_dim", head_dim, "K, width of one head; 0 means width / heads", at_least(0));
      f("window", window, "see only the latest so many tokens; 0 means all", at_least(0));
      f("sinks", sinks, "first tokens that stay visible outside the window", at_least(0));
      f("rope", rope, "theta of the rotary embedding; 0 means none", at_least(0));
      f("rope_dim", rope_dim, "rotated channels of a head; 0 means all", at_least(0));
      f("rope_interleaved", rope_interleaved, "rotate neighbouring channels instead of the two halves");
      f("qk_norm", qk_norm, "RMS norm over each head of q and k");
      f("output_gate", output_gate, "multiply by sigmoid(W_g x) before the output projection");
      f("bias", bias, "biases on q, k, v");
      f("output_bias", output_bias, "bias on the output projection");
      f("scale", scale, "of the scores; 0 means 1 / sqrt(K)", at_least(0));
    }
  };

  Attention(const Options& options, const Site& site)
      : o_(resolved(options, site)),
        ring_(o_.window > 0 ? std::max<int64_t>(o_.window - 1, 1) : 0),
        q_(linear("q", site.width, o_.heads * o_.head_dim, {.bias = o_.bias})),
        k_(linear("k", site.width, o_.kv_heads * o_.head_dim, {.bias = o_.bias})),
        v_(linear("v", site.width, o_.kv_heads * o_.head_dim, {.bias = o_.bias})),
        out_(linear("out", o_.heads * o_.head_dim, site.width,
                    {.bias = o_.output_bias, .scale = site.residual_init()})) {
    if (o_.output_gate) gate_ = linear("gate", site.width, o_.heads * o_.head_dim);
    if (o_.qk_norm) {
      q_norm_ = norm("q_norm", Norm::Kind::rms, o_.head_dim, site.norm_eps);
      k_norm_ = norm("k_norm", Norm::Kind::rms, o_.head_dim, site.norm_eps);
    }
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    const auto q = rotate(q_norm_(heads(q_(x), o_.heads)), context);
    const auto k = rotate(k_norm_(heads(k_(x), o_.kv_heads)), context);
    const auto v = heads(v_(x), o_.kv_heads);
    const Keys keys = ring_ ? through_ring(k, v, state, context) : through_cache(k, v, state, context);
    const ops::Mask mask{.causal = context.causal,
                         .window = o_.window,
                         .sinks = o_.sinks,
                         .q_positions = context.positions,
                         .k_positions = keys.positions,
                         .q_segments = keys.segments.defined() ? context.segments : at::Tensor(),
                         .k_segments = keys.segments};
    auto y = ops::attention(q, keys.k, keys.v, mask, {.scale = o_.scale}).out.flatten(2);
    if (o_.output_gate) y = y * at::sigmoid(gate_(x));
    if (context.wants("kv")) (*context.exports)["kv"] = keys.strand();
    return out_(y);
  }

  // Without a window the cache is cut back; a ring has lost what the draft overwrote, so the default runs
  // again.
  at::Tensor tentative(const at::Tensor& x, State& state, const Context& context, Draft& draft) override {
    if (ring_ || context.starts.defined()) return SequenceMixer::tentative(x, state, context, draft);
    draft.tokens = x.size(1);
    return run(x, state, context);
  }
  void commit(const at::Tensor& n, State& state, Draft& draft) override {
    if (draft.x.defined()) return SequenceMixer::commit(n, state, draft);
    keep_keys(state, state.at("k").size(1) - draft.tokens, n);
  }

  Summary summary(const at::Tensor&, const State&, const Context&) override {
    throw Unsupported(
        "attention has no affine summary: its state grows with the tokens; merge partial attentions by their "
        "log-sum-exp "
        "instead");
  }

  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    const int64_t columns = ring_ ? o_.sinks + ring_ : 0;
    const auto fresh = [&](const char* name, const at::Tensor& value) {
      if (ring_)
        state.set(name, value);
      else
        state.append(name, value);
    };
    fresh("k", at::zeros({batch, columns, o_.kv_heads, o_.head_dim}, options));
    fresh("v", at::zeros({batch, columns, o_.kv_heads, o_.head_dim}, options));
    fresh("slots", at::full({batch, columns}, -1, options.dtype(at::kLong)));
    return state;
  }

  std::vector<std::string> export_ports() const override {
    return ring_ ? std::vector<std::string>{} : std::vector<std::string>{"kv"};
  }
  int64_t state_bytes(int64_t tokens, at::ScalarType dtype) const override {
    const int64_t column = 2 * o_.kv_heads * o_.head_dim * static_cast<int64_t>(c10::elementSize(dtype)) + 8;
    return column * (ring_ ? o_.sinks + ring_ : tokens);
  }
  double op_flops(int64_t context) const override {
    const int64_t seen = o_.window > 0 ? std::min(context, o_.window + o_.sinks) : context;
    return 4.0 * static_cast<double>(o_.heads * o_.head_dim * seen);
  }
  std::vector<std::string> ops() const override {
    std::vector<std::string> names{"attention"};
    if (o_.rope > 0) names.push_back("rope");
    if (o_.qk_norm) names.push_back("norm");
    return names;
  }

 private:
  static Options resolved(Options o, const Site& site) {
    if (o.kv_heads == 0) o.kv_heads = o.heads;
    require(o.heads % o.kv_heads == 0, "{}: heads {} is not a multiple of kv_heads {}", site.where, o.heads,
            o.kv_heads);
    o.head_dim = head_dim_of(o.head_dim, o.heads, site);
    require(
        o.rope == 0 || (o.rope_dim <= o.head_dim && (o.rope_dim ? o.rope_dim : o.head_dim) % 2 == 0),
        "{}: the rotary embedding turns pairs of channels: rope_dim {} must be even and at most head_dim {}",
        site.where, o.rope_dim, o.head_dim);
    require(o.sinks == 0 || o.window > 0, "{}: sinks {} need a window", site.where, o.sinks);
    return o;
  }

  at::Tensor heads(const at::Tensor& x, int64_t count) const { return x.unflatten(-1, {count, o_.head_dim}); }
  at::Tensor rotate(const at::Tensor& x, const Context& context) const {
    if (o_.rope == 0) return x;
    return ops::rope(x, context.positions,
                     {.dim = o_.rope_dim, .theta = o_.rope, .interleaved = o_.rope_interleaved});
  }

  Keys through_cache(const at::Tensor& k, const at::Tensor& v, State& state, const Context& context) const {
    Keys keys = join_keys(Keys::from(state), {k, v, context.positions, context.segments});
    if (!context.keep_state) return keys;
    state.append("k", k);
    state.append("v", v);
    state.append("slots", context.positions);
    keys.k = state.at("k");
    keys.v = state.at("v");
    keys.positions = state.at("slots");
    if (context.segments.defined() && context.segments.size(1) > 0) forget_finished(state, keys, context);
    return keys;
  }

  // Documents that ended inside this call are never seen again.
  static void forget_finished(State& state, const Keys& keys, const Context& context) {
    const auto last = context.segments.slice(1, -1);
    state.set("slots", at::where(keys.segments == last, keys.positions, -1));
    const auto used = (state.at("slots") >= 0).any(0).nonzero();
    const int64_t first = used.numel() ? used[0].item<int64_t>() : state.at("slots").size(1);
    for (const char* name : {"k", "v", "slots"}) state.keep(name, first, state.at(name).size(1));
  }

  Keys through_ring(const at::Tensor& k, const at::Tensor& v, State& state, const Context& context) const {
    const Keys keys = join_keys(Keys::from(state), {k, v, context.positions, context.segments});
    if (context.keep_state && k.size(1) > 0) store_in_ring(k, v, state, context);
    return keys;
  }

  void store_in_ring(const at::Tensor& k, const at::Tensor& v, State& state, const Context& context) const {
    const auto& p = context.positions;  // [B, T]
    const int64_t columns = o_.sinks + ring_;
    auto kept = p > p.slice(1, -1) - ring_;  // still visible to the next token, unless a later document began
    kept = kept.logical_or(p < o_.sinks);
    auto old_slots = state.at("slots");
    if (context.segments.defined()) {
      kept = kept.logical_and(context.segments == context.segments.slice(1, -1));
      old_slots = at::where(context.starts.any(1, true), -1, old_slots);
    }
    // Tokens that are not kept go to a column beyond the end, which is cut off again.
    const auto column = at::where(kept, at::where(p < o_.sinks, p, o_.sinks + p % ring_), columns);
    const auto store = [&](const char* name, const at::Tensor& old, const at::Tensor& fresh) {
      auto index = column;
      while (index.dim() < fresh.dim()) index = index.unsqueeze(-1);
      auto sizes = old.sizes().vec();
      sizes[1] = 1;
      const auto room = at::cat({old, at::zeros(sizes, old.options())}, 1);
      state.set(name, room.scatter(1, index.expand_as(fresh), fresh).narrow(1, 0, columns));
    };
    store("k", state.at("k"), k);
    store("v", state.at("v"), v);
    store("slots", old_slots, p);
  }

  Options o_;
  int64_t ring_;
  Linear q_, k_, v_, gate_, out_;
  Norm q_norm_, k_norm_;
};
const Register<Attention> register_attention{"attention",
                                             "softmax attention with grouped queries, window and sinks"};

}  // namespace
}  // namespace weft
