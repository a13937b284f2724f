// A memory of n-grams of tokens for every residual stream, as Qwen4-Exp's per-layer embeddings; a kin of Engram
// (DeepSeek-AI 2026, arXiv:2601.07372).
//   e = rows of a table for the hashed n-grams that end at the token, 2 <= n <= N, side by side   (nn/mixers/ngram_hash.h)
//   k, v = W_k e, W_v e;   g_i = norm(k)_i norm(x)_i / sqrt(D);   u_i = sigmoid(sign(g_i) sqrt(max(|g_i|, 1e-6))) v
//   y = u + silu(conv(norm(u)))            causal, depthwise, W taps N tokens apart
// x has n streams of D side by side: a layer with whole_stream. Norms are RMS over each stream, scaled by 1 + weight.
// Tokens before a document's first, and those before and at the last `boundary` token behind the current one, count as
// `boundary`.
// State: "tokens" [B, N - 1] int64, less `boundary`; "conv" [B, (W - 1) N, n D].
#include <cmath>

#include "base/error.h"
#include "nn/mixer.h"
#include "nn/mixers/history.h"
#include "nn/mixers/ngram_hash.h"
#include "ops/norm/norm.h"

namespace weft {
namespace {

constexpr double kLeastGate = 1e-6;

class NgramMemory final : public SequenceMixer {
 public:
  struct Options {
    int64_t streams = 1, dim = 0, conv = 4, boundary = 0;
    NgramOptions ngram;
    void fields(Fields& f) {
      f("streams", streams, "n, residual streams side by side", at_least(1));
      f("dim", dim, "width of the embeddings of all n-grams of a token; 0 means that of a stream",
        at_least(0));
      f("conv", conv, "W, taps of the convolution", at_least(1));
      f("boundary", boundary, "token that n-grams do not reach across", at_least(0));
      f("vocab", ngram.vocab, "tokens that there are", at_least(0));
      f("ngram", ngram.longest, "N, longest n-gram", at_least(2));
      f("heads", ngram.heads, "hashed embeddings for each n", at_least(1));
      f("base", ngram.base, "rows of an embedding table are the first primes from here on", at_least(2));
      f("multiple", ngram.multiple, "the joint table is filled up to a multiple of this", at_least(1));
      f("seed", ngram.seed, "of the hash");
      f("index", ngram.index, "which of the model's memories this is; each has a hash of its own",
        at_least(0));
    }
  };

  NgramMemory(const Options& options, const Site& site)
      : o_(options), stream_(site.width / o_.streams), eps_(site.norm_eps), hash_(ngram_hash(o_.ngram)) {
    require(site.width % o_.streams == 0, "{}: {} streams do not divide the width {}; use whole_stream: true",
            site.where, o_.streams, site.width);
    if (o_.dim == 0) o_.dim = stream_;
    const auto heads = static_cast<int64_t>(hash_.sizes.size());
    require(o_.dim % heads == 0, "{}: dim {} is not a multiple of the {} embeddings of a token", site.where,
            o_.dim, heads);
    table_ = parameter("table.weight", {hash_.rows, o_.dim / heads}, init::normal(0.02),
                       {.role = ParameterRules::Role::embedding, .weight_decay = false});
    k_ = linear("k", o_.dim, site.width);
    v_ = linear("v", o_.dim, stream_, {.scale = site.residual_init()});
    k_norm_ = vector_parameter("k_norm.weight", {site.width}, init::constant(0));
    q_norm_ = vector_parameter("q_norm.weight", {site.width}, init::constant(0));
    conv_norm_ = vector_parameter("conv_norm.weight", {site.width}, init::constant(0));
    const double bound = 1.0 / std::sqrt(static_cast<double>(o_.conv));
    conv_ = vector_parameter("conv.weight", {site.width, o_.conv}, init::uniform(-bound, bound));
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    const auto e = at::embedding(table_->value, rows(state, context)).flatten(2).to(x.scalar_type());
    const auto gate = (normed(k_(e), *k_norm_) * normed(x, *q_norm_)).sum(-1, true) /
                      std::sqrt(static_cast<double>(stream_));  // [B, T, n, 1]
    const auto bent = gate.abs().clamp_min(kLeastGate).sqrt() * gate.sign();
    const auto u = at::sigmoid(bent) * v_(e).unsqueeze(-2);  // [B, T, n, D]
    return u.flatten(2) + convolved(normed(u.flatten(2), *conv_norm_).flatten(2), state, context);
  }

  std::vector<std::string> import_ports() const override { return {"tokens"}; }
  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    state.set("tokens", at::zeros({batch, o_.ngram.longest - 1}, options.dtype(at::kLong)));
    state.set("conv", at::zeros({batch, past(), o_.streams * stream_}, options));
    return state;
  }
  double op_flops(int64_t) const override {
    return 2.0 * static_cast<double>(o_.streams * stream_ * o_.conv);
  }
  std::vector<std::string> ops() const override { return {"norm"}; }

 private:
  int64_t past() const { return (o_.conv - 1) * o_.ngram.longest; }

  // x [B, T, nD] -> [B, T, n, D], each stream normed.
  at::Tensor normed(const at::Tensor& x, const Parameter& weight) const {
    const auto scale = (weight.value + 1).to(x.scalar_type()).unflatten(0, {o_.streams, stream_});
    return ops::rms_norm(x.unflatten(-1, {o_.streams, stream_}), {}, eps_) * scale;
  }

  at::Tensor rows(State& state, const Context& context) const {
    // Zero stands for the boundary, as it does for tokens that are not there.
    const auto tokens = context.import("tokens").at("tokens") - o_.boundary;
    const History history(state.at("tokens"), tokens, context);
    state.set("tokens", history.state());
    std::vector<at::Tensor> before{tokens + o_.boundary};
    auto open = at::ones_like(tokens);  // no boundary between the token and the one that is looked at
    for (int64_t j = 1; j < o_.ngram.longest; ++j) {
      open = open * (history.lag(j) != 0);
      before.push_back(history.lag(j) * open + o_.boundary);
    }
    return ngram_rows(hash_, before);
  }

  at::Tensor convolved(const at::Tensor& x, State& state, const Context& context) const {
    const History history(state.at("conv"), x, context);
    state.set("conv", history.state());
    const auto taps = conv_->value.to(x.scalar_type());
    auto y = at::zeros_like(x);
    for (int64_t j = 0; j < o_.conv; ++j)
      y = y + history.lag(j * o_.ngram.longest) * taps.select(1, o_.conv - 1 - j);
    return at::silu(y);
  }

  Options o_;
  int64_t stream_;
  double eps_;
  NgramHash hash_;
  std::shared_ptr<Parameter> table_, k_norm_, q_norm_, conv_norm_, conv_;
  Linear k_, v_;
};
const Register<NgramMemory> register_ngram_memory{
    "ngram_memory", "hashed n-gram embeddings gated into residual streams (Qwen4-Exp)"};

}  // namespace
}  // namespace weft
