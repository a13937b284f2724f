// Attention to selected blocks of keys: a small indexer scores blocks of r neighbouring tokens and each query sees the
// best of them beside the tokens of its own, unfinished block. Qwen4-Exp; a kin of DeepSeek's sparse attention
// (DeepSeek-AI 2025, arXiv:2512.02556).
//   i_t = rope(norm(W_i x_t))              one head for each of H_i, I channels
//   c_b = rope(norm(mean of W_c x over block b)), at the position of the block's first token
//   score(t, b) = sum over heads of max(i_t c_b, 0) / sqrt(I)      for blocks that end at or before t
// A query sees the budget / r blocks of the highest score and all tokens behind the last whole block. Of equal scores
// those of the earlier blocks win, on every device. The choice has no gradient.
//   q, k, v = W_q x, W_k x, W_v x;  q, k <- rope(norm(q)), rope(norm(k));  y = W_o (sigmoid(W_g x) * attention)
//
// H query heads, G key heads, K width of a head. State: k, v, slots as attention's, and index [B, L, I], W_c x in fp32 (or fp64), as all of the
// indexer is: what is chosen must not hang on rounding.
#include <ATen/core/grad_mode.h>

#include <cmath>

#include "base/error.h"
#include "nn/mixer.h"
#include "nn/mixers/heads.h"
#include "nn/mixers/key_cache.h"
#include "nn/mixers/rotary.h"
#include "ops/attention/attention.h"
#include "ops/shape.h"

namespace weft {
namespace {

constexpr int64_t kWord = 64;  // bits of a mask's words

// bits [T, P] bool -> [T, ceil(P / 64)] int64, position p in bit p mod 64 of word p div 64.
at::Tensor packed_bits(const at::Tensor& bits) {
  const int64_t words = (bits.size(1) + kWord - 1) / kWord;
  const auto padded = at::constant_pad_nd(bits, {0, words * kWord - bits.size(1)}).to(at::kLong);
  const auto place =
      at::bitwise_left_shift(at::ones({kWord}, padded.options()), at::arange(kWord, padded.options()));
  return (padded.unflatten(1, {words, kWord}) * place).sum(-1);
}

class IndexedAttention final : public SequenceMixer {
 public:
  struct Options {
    int64_t heads = 4, kv_heads = 0, head_dim = 0;
    int64_t index_heads = 2, index_dim = 8, block = 4, budget = 64;
    RotaryOptions rotary;
    bool zero_centered = false, output_gate = true, bias = false;
    void fields(Fields& f) {
      f("heads", heads, "H, query heads", at_least(1));
      f("kv_heads", kv_heads, "G, key and value heads; 0 means as many as heads", at_least(0));
      f("head_dim", head_dim, "K, width of one head; 0 means width / heads", at_least(0));
      f("index_heads", index_heads, "H_i, query heads of the indexer", at_least(1));
      f("index_dim", index_dim, "I, width of the indexer's heads", at_least(1));
      f("block", block, "r, tokens that are chosen together", at_least(1));
      f("budget", budget, "tokens of whole blocks that a query sees, a multiple of block", at_least(1));
      rotary.fields(f);
      f("zero_centered", zero_centered, "norms of heads scale by 1 + weight");
      f("output_gate", output_gate, "multiply by sigmoid(W_g x) before the output projection");
      f("bias", bias, "biases on q, k, v, gate and the output");
    }
  };

  IndexedAttention(const Options& options, const Site& site)
      : o_(resolved(options, site)),
        rotary_(o_.rotary, o_.head_dim, site.where),
        index_rotary_(o_.rotary, o_.index_dim, site.where),
        q_(linear("q", site.width, o_.heads * o_.head_dim, {.bias = o_.bias})),
        k_(linear("k", site.width, o_.kv_heads * o_.head_dim, {.bias = o_.bias})),
        v_(linear("v", site.width, o_.kv_heads * o_.head_dim, {.bias = o_.bias})),
        index_q_(linear("index_q", site.width, o_.index_heads * o_.index_dim)),
        index_k_(linear("index_k", site.width, o_.index_dim)),
        out_(linear("out", o_.heads * o_.head_dim, site.width,
                    {.bias = o_.bias, .scale = site.residual_init()})) {
    if (o_.output_gate) gate_ = linear("gate", site.width, o_.heads * o_.head_dim, {.bias = o_.bias});
    const auto kind = o_.zero_centered ? Norm::Kind::rms_zero_centered : Norm::Kind::rms;
    q_norm_ = norm("q_norm", kind, o_.head_dim, site.norm_eps);
    k_norm_ = norm("k_norm", kind, o_.head_dim, site.norm_eps);
    index_q_norm_ = norm("index_q_norm", kind, o_.index_dim, site.norm_eps);
    index_k_norm_ = norm("index_k_norm", kind, o_.index_dim, site.norm_eps);
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    const auto q = rotary_(q_norm_(heads(q_(x), o_.heads)), context.positions);
    const auto k = rotary_(k_norm_(heads(k_(x), o_.kv_heads)), context.positions);
    const auto index = index_k_(wide(x));
    const auto all_index = at::cat({state.at("index"), index}, 1);
    const Keys keys = extend_key_cache(k, heads(v_(x), o_.kv_heads), 0, state, context, index);
    const auto mask = mask_of(x, keys, all_index, context);
    auto y = ops::attention(q, keys.k, keys.v, mask).out.flatten(2);
    if (o_.output_gate) y = y * at::sigmoid(gate_(x));
    return out_(y);
  }

  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    start_key_cache(state, batch, o_.kv_heads, o_.head_dim, o_.head_dim, options);
    const auto type = c10::typeMetaToScalarType(options.dtype()) == at::kDouble ? at::kDouble : at::kFloat;
    state.append("index", at::zeros({batch, 0, o_.index_dim}, options.dtype(type)));
    return state;
  }
  int64_t state_bytes(int64_t tokens, at::ScalarType dtype) const override {
    return key_cache_bytes(tokens, 0, o_.kv_heads, o_.head_dim, o_.head_dim, dtype) +
           tokens * o_.index_dim * (dtype == at::kDouble ? 8 : 4);
  }
  double op_flops(int64_t context) const override {
    const int64_t seen = std::min(context, o_.budget + o_.block - 1), blocks = context / o_.block;
    return 4.0 * static_cast<double>(o_.heads * o_.head_dim * seen) +
           2.0 * static_cast<double>(o_.index_heads * o_.index_dim * blocks);
  }
  std::vector<std::string> ops() const override { return {"attention", "norm", "rope"}; }

 private:
  static Options resolved(Options o, const Site& site) {
    if (o.kv_heads == 0) o.kv_heads = o.heads;
    require(o.heads % o.kv_heads == 0, "{}: heads {} is not a multiple of kv_heads {}", site.where, o.heads,
            o.kv_heads);
    o.head_dim = head_dim_of(o.head_dim, o.heads, site);
    require(o.budget % o.block == 0, "{}: budget {} is not a multiple of block {}", site.where, o.budget,
            o.block);
    // The indexer turns as many channels of its heads as attention does.
    if (o.rotary.theta > 0 && o.rotary.dim == 0) o.rotary.dim = o.head_dim;
    return o;
  }
  static at::Tensor wide(const at::Tensor& x) { return x.to(accumulate_type(x)); }
  static at::Tensor heads(const at::Tensor& x, int64_t count) { return x.unflatten(-1, {count, -1}); }

  // What queries see: a range up to their own token, and bits for the positions of blocks that were chosen.
  ops::Mask mask_of(const at::Tensor& x, const Keys& keys, const at::Tensor& index,
                    const Context& context) const {
    const auto& p = context.positions;  // [B, T]
    ops::Mask mask{.q_positions = p,
                   .k_positions = keys.positions,
                   .q_segments = keys.segments.defined() ? context.segments : at::Tensor(),
                   .k_segments = keys.segments};
    if (p.numel() == 0 || p.max().item<int64_t>() + 1 < o_.budget + o_.block) return mask;
    const at::NoGradGuard no_grad;
    const auto iq =
        index_rotary_(index_q_norm_(heads(index_q_(wide(x)), o_.index_heads)), p);  // [B, T, H_i, I]
    auto first = at::zeros_like(p);
    auto chosen =
        at::zeros({p.size(0), p.size(1), p.max().item<int64_t>() + 1}, p.options().dtype(at::kBool));
    for (int64_t row = 0; row < p.size(0); ++row)
      for (const auto& [segment, queries] : documents(context, row)) {
        auto columns = keys.positions[row] >= 0;  // [S]
        if (keys.segments.defined()) columns = columns.logical_and(keys.segments[row] == segment);
        const auto at = columns.nonzero().squeeze(1);
        const auto blocks =
            block_keys(index[row].index_select(0, at), keys.positions[row].index_select(0, at));
        choose(scores(iq[row].index_select(0, queries), blocks), queries, first[row], chosen[row], p[row]);
      }
    mask.causal = false;
    mask.q_range = at::stack({first, p}, -1);
    mask.q_tree = packed_bits(chosen.flatten(0, 1)).unflatten(0, {p.size(0), p.size(1)});
    mask.tree_begin = at::zeros({p.size(0)}, p.options());
    return mask;
  }

  // The documents of a row of this call: segment, indices of its tokens.
  static std::vector<std::pair<int64_t, at::Tensor>> documents(const Context& context, int64_t row) {
    if (!context.segments.defined())
      return {{0, at::arange(context.positions.size(1), context.positions.options())}};
    std::vector<std::pair<int64_t, at::Tensor>> all;
    const auto segments = context.segments[row];
    const auto distinct = std::get<0>(at::_unique2(segments));
    for (int64_t i = 0; i < distinct.numel(); ++i) {
      const auto segment = distinct[i].item<int64_t>();
      all.emplace_back(segment, (segments == segment).nonzero().squeeze(1));
    }
    return all;
  }

  // raw [S, I] at positions [S] of one document -> the whole blocks' keys [N, I].
  at::Tensor block_keys(const at::Tensor& raw, const at::Tensor& positions) const {
    const int64_t blocks = raw.size(0) / o_.block;
    if (blocks == 0) return raw.slice(0, 0, 0);
    const auto in_order = raw.index_select(0, positions.argsort()).slice(0, 0, blocks * o_.block);
    const auto type = accumulate_type(raw);
    const auto mean = in_order.to(type).unflatten(0, {blocks, o_.block}).mean(1).to(raw.scalar_type());
    const auto starts = at::arange(blocks, positions.options()) * o_.block;
    return index_rotary_(index_k_norm_(mean).view({1, blocks, 1, o_.index_dim}), starts.unsqueeze(0))
        .view({blocks, o_.index_dim});
  }

  // queries [T, H_i, I] and blocks [N, I] -> [T, N]
  at::Tensor scores(const at::Tensor& queries, const at::Tensor& blocks) const {
    const auto type = accumulate_type(queries);
    const auto each = at::relu(at::matmul(queries.to(type), blocks.to(type).t()));  // [T, H_i, N]
    return each.sum(1) / std::sqrt(static_cast<double>(o_.index_dim));
  }

  // Writes, for the queries of one document, where the range that they see begins and which positions were chosen.
  // Queries with equally many whole blocks before them are ranked together.
  void choose(const at::Tensor& scores, const at::Tensor& queries, at::Tensor first, at::Tensor chosen,
              const at::Tensor& positions) const {
    const int64_t most = o_.budget / o_.block;
    const auto whole =
        (positions.index_select(0, queries) + 1).div(o_.block, "floor");  // blocks before each query
    const auto counts = std::get<0>(at::_unique2(whole));
    for (int64_t i = 0; i < counts.numel(); ++i) {
      const auto count = counts[i].item<int64_t>();
      if (count <= most) continue;
      const auto rows = (whole == count).nonzero().squeeze(1);
      // Stable, since max(., 0) makes many scores equal and topk orders those differently on each device.
      const auto ranked = at::argsort(scores.index_select(0, rows).slice(1, 0, count), /*stable=*/true, 1,
                                      /*descending=*/true);
      const auto best = ranked.slice(1, 0, most);  // [R, most]
      auto blocks = at::zeros({rows.size(0), count}, chosen.options());
      blocks.scatter_(1, best, true);
      const auto tokens = blocks.repeat_interleave(o_.block, 1);  // [R, count * r]
      const auto at = queries.index_select(0, rows);
      chosen.index_put_({at}, at::constant_pad_nd(tokens, {0, chosen.size(1) - tokens.size(1)}));
      first.index_put_({at}, at::full({}, count * o_.block, first.options()));
    }
  }

  Options o_;
  Rotary rotary_, index_rotary_;
  Linear q_, k_, v_, gate_, index_q_, index_k_, out_;
  Norm q_norm_, k_norm_, index_q_norm_, index_k_norm_;
};
const Register<IndexedAttention> register_indexed_attention{
    "indexed_attention", "attention to blocks of keys that an indexer chooses (Qwen4-Exp)"};

}  // namespace
}  // namespace weft
