// Multi-head latent attention: keys and values of all heads come from one small latent of each token, which is all that
// is kept, beside one rotated key that the heads share. DeepSeek-AI 2024, "DeepSeek-V2", arXiv:2405.04434; rotation in
// part: arXiv:2405.04434, section 2.1.3; gate of a head: Qiu et al. 2025, arXiv:2505.06708.
//   c, r = W_a x split in C and R;  c <- RMSNorm(c);  r <- rope(r)
//   q = W_q x, or W_q2 RMSNorm(W_q1 x);  of each head N channels p, then R channels t <- rope(t)
//   k, v = W_b c, of each head N channels of k and V of v
//   y = W_o (softmax((p k' + t r') / sqrt(N + R) + mask) v), each head's read-out times sigmoid(W_g x) with output_gate
// Where few queries meet many cached tokens, W_b is applied to the query and to the read-out instead (p k' = (W_b' p) c'),
// so that cached latents are read as they are.
//
// H heads, C width of the latent, N, R and V of a head's unrotated key, rotated key and value.
// State: latent [B, L, C + R] (c, then r) and slots [B, L], the position each column holds (-1: none). Keys r are kept
// rotated, unless the rotation depends on the document's length (nn/mixers/rotary.h).
#include <cmath>

#include "base/error.h"
#include "nn/mixer.h"
#include "nn/mixers/keys.h"
#include "nn/mixers/rotary.h"
#include "ops/attention/attention.h"
#include "ops/shape.h"

namespace weft {
namespace {

class LatentAttention final : public SequenceMixer {
 public:
  struct Options {
    int64_t heads = 4, latent = 0, query_latent = 0, head_dim = 0, rope_head_dim = 0, value_dim = 0;
    RotaryOptions rotary;
    double scale = 0, latent_norm_eps = 1e-6;
    bool bias = false, output_bias = false, output_gate = false;
    void fields(Fields& f) {
      f("heads", heads, "H, heads", at_least(1));
      f("latent", latent, "C, width of the latent of keys and values; 0 means 4 N", at_least(0));
      f("query_latent", query_latent, "width of a latent of the queries, which is not kept; 0 means none",
        at_least(0));
      f("head_dim", head_dim,
        "N, channels of a head's query and key that are not rotated; 0 means width / heads", at_least(0));
      f("rope_head_dim", rope_head_dim,
        "R, channels of a head's query, and of the shared key, that are rotated; 0 means "
        "half of N, rounded up to an even number",
        at_least(0));
      f("value_dim", value_dim, "V, width of a head's value; 0 means N", at_least(0));
      rotary.fields(f);
      f("scale", scale, "of the scores; 0 means 1 / sqrt(N + R)", at_least(0));
      f("latent_norm_eps", latent_norm_eps, "of the norms of the latents", above(0));
      f("bias", bias, "biases on the projections to the latents");
      f("output_bias", output_bias, "bias on the output projection");
      f("output_gate", output_gate,
        "multiply each head's read-out by a sigmoid of one number computed from the token");
    }
  };

  LatentAttention(const Options& options, const Site& site)
      : o_(resolved(options, site)),
        rotary_(o_.rotary, o_.rope_head_dim, site.where),
        kv_in_(linear("kv_in", site.width, o_.latent + o_.rope_head_dim, {.bias = o_.bias})),
        kv_out_(linear("kv_out", o_.latent, o_.heads * (o_.head_dim + o_.value_dim))),
        out_(linear("out", o_.heads * o_.value_dim, site.width,
                    {.bias = o_.output_bias, .scale = site.residual_init()})),
        kv_norm_(norm("kv_norm", Norm::Kind::rms, o_.latent, o_.latent_norm_eps)) {
    const int64_t queries = o_.heads * (o_.head_dim + o_.rope_head_dim);
    if (o_.query_latent > 0) {
      q_in_ = linear("q_in", site.width, o_.query_latent, {.bias = o_.bias});
      q_norm_ = norm("q_norm", Norm::Kind::rms, o_.query_latent, o_.latent_norm_eps);
    }
    q_ = linear(o_.query_latent > 0 ? "q_out" : "q", o_.query_latent > 0 ? o_.query_latent : site.width,
                queries);
    if (o_.output_gate) gate_ = linear("gate", site.width, o_.heads);
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    const Cache cache = extended(latents(x, context), state, context);
    const auto q = queries(x, context);  // [B, T, H, N + R]
    const ops::Mask mask{.causal = context.causal,
                         .q_positions = context.positions,
                         .k_positions = cache.positions,
                         .q_segments = cache.segments.defined() ? context.segments : at::Tensor(),
                         .k_segments = cache.segments};
    auto y = absorbing_pays(x.size(1), cache.latent.size(1)) ? read_latents(q, cache, mask)
                                                             : read_heads(q, cache, mask);
    if (o_.output_gate) y = y * at::sigmoid(gate_(x)).unsqueeze(-1);
    return out_(y.flatten(2));
  }

  at::Tensor tentative(const at::Tensor& x, State& state, const Context& context, Draft& draft) override {
    if (context.starts.defined()) return SequenceMixer::tentative(x, state, context, draft);
    draft.tokens = x.size(1);
    return run(x, state, context);
  }
  void commit(const at::Tensor& n, State& state, Draft& draft) override {
    if (draft.x.defined()) return SequenceMixer::commit(n, state, draft);
    keep_keys(state, state.at("latent").size(1) - draft.tokens, n, {"latent"});
  }

  Summary summary(const at::Tensor&, const State&, const Context&) override {
    throw Unsupported(
        "mla has no affine summary: its state grows with the tokens; merge partial attentions by their "
        "log-sum-exp "
        "instead");
  }

  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    state.append("latent", at::zeros({batch, 0, o_.latent + o_.rope_head_dim}, options));
    state.append("slots", at::full({batch, 0}, -1, options.dtype(at::kLong)));
    return state;
  }
  int64_t state_bytes(int64_t tokens, at::ScalarType dtype) const override {
    return ((o_.latent + o_.rope_head_dim) * static_cast<int64_t>(c10::elementSize(dtype)) + 8) * tokens;
  }
  double op_flops(int64_t context) const override {
    return 2.0 * static_cast<double>(o_.heads * (o_.head_dim + o_.rope_head_dim + o_.value_dim) * context);
  }
  std::vector<std::string> ops() const override {
    if (rotary_) return {"attention", "norm", "rope"};
    return {"attention", "norm"};
  }

 private:
  struct Cache {
    at::Tensor latent;     // [B, S, C + R], rotated
    at::Tensor positions;  // [B, S]
    at::Tensor segments;   // [B, S]; undefined: one segment
  };

  static Options resolved(Options o, const Site& site) {
    if (o.head_dim == 0) {
      require(site.width % o.heads == 0, "{}: heads {} does not divide width {}; give head_dim", site.where,
              o.heads, site.width);
      o.head_dim = site.width / o.heads;
    }
    if (o.latent == 0) o.latent = 4 * o.head_dim;
    if (o.rope_head_dim == 0) o.rope_head_dim = (o.head_dim + 3) / 4 * 2;
    if (o.value_dim == 0) o.value_dim = o.head_dim;
    if (o.scale == 0) o.scale = 1 / std::sqrt(static_cast<double>(o.head_dim + o.rope_head_dim));
    return o;
  }

  // Flops a head beside those that both forms have.
  bool absorbing_pays(int64_t queries, int64_t keys) const {
    const auto t = static_cast<double>(queries), s = static_cast<double>(keys),
               c = static_cast<double>(o_.latent);
    const auto nv = static_cast<double>(o_.head_dim + o_.value_dim);
    return t * c * nv + 2 * t * s * c < s * c * nv + t * s * nv;
  }

  // Heads x [B, T, ..., R] that stand at `positions` of `segments` in the documents of this call.
  at::Tensor rotate(const at::Tensor& x, const at::Tensor& positions, const at::Tensor& segments,
                    const Context& context) const {
    if (!rotary_.by_length()) return rotary_(x, positions);
    return rotary_(x, positions, document_lengths(positions, segments, context));
  }
  // The last R channels of latents [B, S, C + R] rotated.
  at::Tensor rotate_latents(const at::Tensor& latent, const at::Tensor& positions, const at::Tensor& segments,
                            const Context& context) const {
    if (!rotary_) return latent;
    const auto parts = latent.split_with_sizes({o_.latent, o_.rope_head_dim}, -1);
    return at::cat({parts[0], rotate(parts[1].unsqueeze(2), positions, segments, context).squeeze(2)}, -1);
  }

  at::Tensor latents(const at::Tensor& x, const Context& context) const {
    const auto parts = kv_in_(x).split_with_sizes({o_.latent, o_.rope_head_dim}, -1);
    const auto latent = at::cat({kv_norm_(parts[0]), parts[1]}, -1);
    return rotary_.by_length() ? latent
                               : rotate_latents(latent, context.positions, context.segments, context);
  }

  at::Tensor queries(const at::Tensor& x, const Context& context) const {
    const auto q = q_(o_.query_latent > 0 ? q_norm_(q_in_(x)) : x).unflatten(-1, {o_.heads, -1});
    if (!rotary_) return q;
    const auto parts = q.split_with_sizes({o_.head_dim, o_.rope_head_dim}, -1);
    return at::cat({parts[0], rotate(parts[1], context.positions, context.segments, context)}, -1);
  }

  // What was cached, then `fresh` [B, T, C + R], which is added to the state.
  Cache extended(const at::Tensor& fresh, State& state, const Context& context) const {
    const auto before = state.at("slots");
    Cache cache;
    if (context.segments.defined()) cache.segments = at::cat({at::zeros_like(before), context.segments}, 1);
    if (context.keep_state) {
      state.append("latent", fresh);
      state.append("slots", context.positions);
      cache.latent = state.at("latent");
      cache.positions = state.at("slots");
      forget_finished(state, cache.segments, context, {"latent"});
    } else {
      cache.latent = before.size(1) == 0 ? fresh : at::cat({state.at("latent"), fresh}, 1);
      cache.positions = at::cat({before, context.positions}, 1);
    }
    if (rotary_.by_length())
      cache.latent = rotate_latents(cache.latent, cache.positions, cache.segments, context);
    return cache;
  }

  // W_b as [H, N + V, C] in the type of x.
  at::Tensor expansion(const at::Tensor& x) const {
    return kv_out_.weight().to(x.scalar_type()).view({o_.heads, -1, o_.latent});
  }

  // Keys and values of every head from all latents.
  at::Tensor read_heads(const at::Tensor& q, const Cache& cache, const ops::Mask& mask) const {
    const auto parts = cache.latent.split_with_sizes({o_.latent, o_.rope_head_dim}, -1);
    const auto kv =
        kv_out_(parts[0]).unflatten(-1, {o_.heads, -1}).split_with_sizes({o_.head_dim, o_.value_dim}, -1);
    const auto shared = parts[1].unsqueeze(2).expand({-1, -1, o_.heads, -1});
    return ops::attention(q, at::cat({kv[0], shared}, -1), kv[1], mask, {.scale = o_.scale}).out;
  }

  // The latents themselves as the one key and value of all heads.
  at::Tensor read_latents(const at::Tensor& q, const Cache& cache, const ops::Mask& mask) const {
    const auto parts = q.split_with_sizes({o_.head_dim, o_.rope_head_dim}, -1);
    const auto weights = expansion(q).split_with_sizes({o_.head_dim, o_.value_dim}, 1);
    const auto lifted = at::einsum("bthn,hnc->bthc", {parts[0], weights[0]});
    const auto keys = cache.latent.unsqueeze(2);  // [B, S, 1, C + R]
    const auto read = ops::attention(at::cat({lifted, parts[1]}, -1), keys, keys.narrow(-1, 0, o_.latent),
                                     mask, {.scale = o_.scale})
                          .out;
    return at::einsum("bthc,hvc->bthv", {read, weights[1]});
  }

  Options o_;
  Rotary rotary_;
  Linear kv_in_, kv_out_, out_, q_in_, q_, gate_;
  Norm kv_norm_, q_norm_;
};
const Register<LatentAttention> register_mla{
    "mla", "multi-head latent attention: exact recall from a cache of one small vector a token"};

}  // namespace
}  // namespace weft
