// Softmax attention with grouped queries, rotary positions, window, sinks, norms of q and k, and output gate.
// Vaswani et al. 2017, arXiv:1706.03762; grouped queries: Ainslie et al. 2023, arXiv:2305.13245; output gate:
// Qiu et al. 2025, arXiv:2505.06708; norms of q and k: Henry et al. 2020, arXiv:2010.04245.
//   q, k, v = W_q x, W_k x, W_v x;  q, k <- rope(norm(q)), rope(norm(k))
//   y = W_o (sigmoid(W_g x) * softmax(q k' / sqrt(K) + mask) v)           or differential attention, nn/mixers/scores.h
//
// H query heads, G key heads, K width of a head, V of a value head.
// State without a window: k [B, L, G, K], v [B, L, G, V] and slots [B, L], the position each column holds (-1: none).
// With a window w: a ring of sinks + max(w - 1, 1) columns; position p stands in column p while it is a sink, else in
// sinks + p mod (w - 1). Keys are kept rotated, unless the rotation depends on the document's length (nn/mixers/rotary.h).
#include <cmath>

#include "base/error.h"
#include "nn/mixer.h"
#include "nn/mixers/heads.h"
#include "nn/mixers/in_place.h"
#include "nn/mixers/keys.h"
#include "nn/mixers/rotary.h"
#include "nn/mixers/scores.h"
#include "ops/attention/ring_step.h"
#include "ops/linear/linear.h"
#include "ops/norm/norm.h"
#include "ops/shape.h"

namespace weft {
namespace {

class Attention final : public SequenceMixer {
 public:
  struct Options {
    int64_t heads = 4, kv_heads = 0, head_dim = 0, value_dim = 0, adapter_rank = 0;
    int64_t window = 0, sinks = 0;
    RotaryOptions rotary;
    ScoreOptions scores;
    double qk_norm_eps = 0;
    bool qk_norm = false, output_gate = false, bias = false, gate_bias = false, output_bias = false;
    std::string qk_norm_kind = "rms", qk_norm_over = "head", output_gate_over = "channel";
    void fields(Fields& f) {
      f("heads", heads, "H, query heads", at_least(1));
      f("kv_heads", kv_heads, "G, key and value heads; 0 means as many as heads", at_least(0));
      f("head_dim", head_dim, "K, width of one head; 0 means width / heads", at_least(0));
      f("value_dim", value_dim, "V, width of one value head; 0 means K", at_least(0));
      f("window", window, "see only the latest so many tokens; 0 means all", at_least(0));
      f("sinks", sinks, "first tokens that stay visible outside the window", at_least(0));
      rotary.fields(f);
      f("qk_norm", qk_norm, "norm of q and k before they are rotated");
      f("qk_norm_kind", qk_norm_kind, "which; rms_zero_centered scales by 1 + weight",
        one_of({"rms", "rms_zero_centered", "layer"}));
      f("qk_norm_over", qk_norm_over,
        "head: each head by itself, with common weights; each: each with weights of its own; all: all heads "
        "of q and of k at once",
        one_of({"head", "each", "all"}));
      f("qk_norm_eps", qk_norm_eps, "of that norm; 0: the layer's norm_eps", at_least(0));
      f("output_gate", output_gate, "multiply by sigmoid(W_g x) before the output projection");
      f("output_gate_over", output_gate_over, "a gate for each channel or for each head",
        one_of({"channel", "head"}));
      f("bias", bias, "biases on q, k, v");
      f("gate_bias", gate_bias, "bias on the output gate");
      f("output_bias", output_bias, "bias on the output projection");
      f("adapter_rank", adapter_rank,
        "r, of low-rank additions to q, k and v that a layer has for itself where it shares the others; 0: "
        "none",
        at_least(0));
      scores.fields(f);
    }
  };

  Attention(const Options& options, const Site& site)
      : o_(resolved(options, site)),
        ring_(o_.window > 0 ? std::max<int64_t>(o_.window - 1, 1) : 0),
        rotary_(o_.rotary, o_.head_dim, site.where),
        scores_(o_.scores, o_.heads, o_.head_dim, o_.value_dim, site),
        q_(linear("q", site.input(), o_.heads * o_.head_dim, input_options())),
        k_(linear("k", site.input(), o_.kv_heads * o_.head_dim, input_options())),
        v_(linear("v", site.input(), o_.kv_heads * o_.value_dim, input_options())),
        out_(linear("out", o_.heads * o_.value_dim, site.width,
                    {.bias = o_.output_bias, .scale = site.residual_init()})) {
    add_child("scores", scores_);
    const bool by_head = o_.output_gate_over == "head";
    if (o_.output_gate)
      gate_ =
          linear("gate", site.input(), by_head ? o_.heads : o_.heads * o_.value_dim, {.bias = o_.gate_bias});
    if (!o_.qk_norm) return;
    const auto kind = norm_kind(o_.qk_norm_kind);
    const auto size = [&](int64_t heads) { return normed_by_head() ? o_.head_dim : heads * o_.head_dim; };
    q_norm_ = norm("q_norm", kind, size(o_.heads), o_.qk_norm_eps);
    k_norm_ = norm("k_norm", kind, size(o_.kv_heads), o_.qk_norm_eps);
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    const auto rows = projected(x);
    auto q = normed_heads(rows[0], q_norm_, o_.heads);
    auto k = normed_heads(rows[1], k_norm_, o_.kv_heads);
    const auto v = rows[2].unflatten(-1, {o_.kv_heads, o_.value_dim});
    if (!rotary_.by_length()) k = rotary_(k, context.positions);
    Keys keys = ring_ ? through_ring(k, v, state, context) : through_cache(k, v, state, context);
    q = rotate(q, context.positions, context.segments, context);
    if (rotary_.by_length()) keys.k = rotate(keys.k, keys.positions, keys.segments, context);
    const ops::Mask mask{.causal = context.causal,
                         .window = o_.window,
                         .sinks = o_.sinks,
                         .q_positions = context.positions,
                         .k_positions = keys.positions,
                         .q_segments = keys.segments.defined() ? context.segments : at::Tensor(),
                         .k_segments = keys.segments};
    if (context.wants("kv")) (*context.exports)["kv"] = keys.strand();
    return out_(gated(scores_(q, keys.k, keys.v, mask), x).flatten(2));
  }

  at::Tensor step(const at::Tensor& x, State& state, const Context& context) override {
    if (!ring_ || !steps_in_one(context)) return run(x, state, context);
    const auto rows = projected(x);
    const bool normed = o_.qk_norm;
    const auto y = ops::attention_ring_step({.q = rows[0].unflatten(-1, {o_.heads, o_.head_dim}),
                                             .k = rows[1].unflatten(-1, {o_.kv_heads, o_.head_dim}),
                                             .v = rows[2].unflatten(-1, {o_.kv_heads, o_.value_dim}),
                                             .positions = context.positions,
                                             .q_norm = normed ? q_norm_.weight() : at::Tensor(),
                                             .k_norm = normed ? k_norm_.weight() : at::Tensor(),
                                             .norm_eps = o_.qk_norm_eps,
                                             .rotates = static_cast<bool>(rotary_),
                                             .rope = rotary_.turns(x.device()),
                                             .window = o_.window,
                                             .sinks = o_.sinks,
                                             .scale = o_.scores.scale,
                                             .softcap = o_.scores.softcap,
                                             .ring_k = in_place(state, "k"),
                                             .ring_v = in_place(state, "v"),
                                             .slots = in_place(state, "slots")});
    return out_(gated(y, x).flatten(2));
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
    fresh("v", at::zeros({batch, columns, o_.kv_heads, o_.value_dim}, options));
    fresh("slots", at::full({batch, columns}, -1, options.dtype(at::kLong)));
    return state;
  }

  bool takes_wide_input() const override { return true; }
  std::vector<std::string> export_ports() const override {
    return ring_ ? std::vector<std::string>{} : std::vector<std::string>{"kv"};
  }
  int64_t state_bytes(int64_t tokens, at::ScalarType dtype) const override {
    const auto numbers = o_.kv_heads * (o_.head_dim + o_.value_dim);
    const int64_t column = numbers * static_cast<int64_t>(c10::elementSize(dtype)) + 8;
    return column * (ring_ ? o_.sinks + ring_ : tokens);
  }
  double op_flops(int64_t context) const override {
    const int64_t seen = o_.window > 0 ? std::min(context, o_.window + o_.sinks) : context;
    return 2.0 * static_cast<double>(o_.heads * (o_.head_dim + o_.value_dim) * seen);
  }
  std::vector<std::string> ops() const override {
    std::vector<std::string> names{"attention"};
    if (rotary_) names.push_back("rope");
    if (o_.qk_norm || o_.scores.differential) names.push_back("norm");
    return names;
  }

 private:
  static Options resolved(Options o, const Site& site) {
    if (o.kv_heads == 0) o.kv_heads = o.heads;
    require(o.heads % o.kv_heads == 0, "{}: heads {} is not a multiple of kv_heads {}", site.where, o.heads,
            o.kv_heads);
    o.head_dim = head_dim_of(o.head_dim, o.heads, site);
    if (o.value_dim == 0) o.value_dim = o.head_dim;
    if (o.qk_norm_eps == 0) o.qk_norm_eps = site.norm_eps;
    require(o.qk_norm_over != "each" || o.qk_norm_kind != "layer",
            "{}: qk_norm_kind layer has no weights of each head; expected rms or rms_zero_centered",
            site.where);
    require(o.sinks == 0 || o.window > 0, "{}: sinks {} need a window", site.where, o.sinks);
    return o;
  }

  // Whether the op for a whole token has what this one wants.
  bool steps_in_one(const Context& context) const {
    const bool norms = !o_.qk_norm || (normed_by_head() && o_.qk_norm_kind != "layer");
    return norms && !rotary_.by_length() && !o_.scores.differential && context.causal && context.keep_state &&
           !context.starts.defined();
  }
  // q, k and v of x side by side in heads.
  std::vector<at::Tensor> projected(const at::Tensor& x) const {
    if (o_.bias || o_.adapter_rank > 0) return {q_(x), k_(x), v_(x)};
    return ops::linear(x, {q_.weight(), k_.weight(), v_.weight()});
  }
  LinearOptions input_options() const { return {.bias = o_.bias, .adapter_rank = o_.adapter_rank}; }
  bool normed_by_head() const { return o_.qk_norm_over == "head"; }
  // Projections [B, T, count K] as normed heads [B, T, count, K].
  at::Tensor normed_heads(const at::Tensor& x, const Norm& norm, int64_t count) const {
    const std::vector<int64_t> sizes{count, o_.head_dim};
    if (o_.qk_norm_over == "all") return norm(x).unflatten(-1, sizes);
    const auto heads = x.unflatten(-1, sizes);
    if (normed_by_head() || !o_.qk_norm) return norm(heads);
    return ops::rms_norm(heads, {}, norm.eps()) * norm.weight().view(sizes).to(x.scalar_type());
  }
  // Read-outs [B, T, H, V] times the gate that x opens.
  at::Tensor gated(const at::Tensor& y, const at::Tensor& x) const {
    if (!o_.output_gate) return y;
    return y *
           at::sigmoid(gate_(x)).unflatten(-1, {o_.heads, o_.output_gate_over == "head" ? 1 : o_.value_dim});
  }
  // Heads x that stand at `positions` of `segments` in the documents of this call.
  at::Tensor rotate(const at::Tensor& x, const at::Tensor& positions, const at::Tensor& segments,
                    const Context& context) const {
    if (!rotary_.by_length()) return rotary_(x, positions);
    return rotary_(x, positions, document_lengths(positions, segments, context));
  }

  Keys through_cache(const at::Tensor& k, const at::Tensor& v, State& state, const Context& context) const {
    const Keys fresh{k, v, context.positions, context.segments};
    if (!context.keep_state) return join_keys(Keys::from(state), fresh);
    const auto segments = join_segments(state.at("slots"), fresh);
    state.append("k", k);
    state.append("v", v);
    state.append("slots", context.positions);
    auto keys = Keys::from(state);
    keys.segments = segments;
    forget_finished(state, keys.segments, context);
    return keys;
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
  Rotary rotary_;
  Scores scores_;
  Linear q_, k_, v_, gate_, out_;
  Norm q_norm_, k_norm_;
};
const Register<Attention> register_attention{"attention",
                                             "softmax attention with grouped queries, window and sinks"};

}  // namespace
}  // namespace weft
