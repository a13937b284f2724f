// Attention of this layer's queries over keys and values that another layer computed: the upper half of YOCO
// and SambaY (Ren et al. 2025, arXiv:2507.06607), or over given keys and values of another sequence (causal:
// false).
//   y = W_o softmax(W_q x k' / sqrt(K) + mask) v        no state: the exporting layer keeps the keys
#include "base/error.h"
#include "nn/mixer.h"
#include "nn/mixers/heads.h"
#include "nn/mixers/keys.h"
#include "nn/mixers/rotary.h"
#include "nn/mixers/scores.h"
#include "ops/shape.h"

namespace weft {
namespace {

class CrossAttention final : public SequenceMixer {
 public:
  struct Options {
    int64_t heads = 4, head_dim = 0, window = 0;
    RotaryOptions rotary;  // of q, that of the exporting layer
    ScoreOptions scores;
    bool causal = true, qk_norm = false, bias = false;
    std::string qk_norm_kind = "rms";
    void fields(Fields& f) {
      f("heads", heads, "H, query heads; a multiple of the exporting layer's kv_heads", at_least(1));
      f("head_dim", head_dim, "K, width of one head, that of the exporting layer; 0 means width / heads",
        at_least(0));
      f("window", window, "see only the latest so many tokens; 0 means all", at_least(0));
      rotary.fields(f);
      f("causal", causal, "see only positions up to the query's own; false for keys of another sequence");
      f("qk_norm", qk_norm, "norm over each head of q");
      f("qk_norm_kind", qk_norm_kind, "which; rms_zero_centered scales by 1 + weight",
        one_of({"rms", "rms_zero_centered", "layer"}));
      f("bias", bias, "biases on q and the output projection");
      scores.fields(f);
    }
  };

  CrossAttention(const Options& options, const Site& site)
      : o_(resolved(options, site)),
        rotary_(o_.rotary, o_.head_dim, site.where),
        scores_(o_.scores, o_.heads, o_.head_dim, o_.head_dim, site),
        q_(linear("q", site.width, o_.heads * o_.head_dim, {.bias = o_.bias})),
        out_(linear("out", o_.heads * o_.head_dim, site.width,
                    {.bias = o_.bias, .scale = site.residual_init()})) {
    add_child("scores", scores_);
    if (o_.qk_norm) q_norm_ = norm("q_norm", norm_kind(o_.qk_norm_kind), o_.head_dim, site.norm_eps);
  }

  at::Tensor run(const at::Tensor& x, State&, const Context& context) override {
    const Keys keys = Keys::from(context.import("kv"));
    require(
        keys.k.size(3) == o_.head_dim && keys.v.size(3) == o_.head_dim && o_.heads % keys.k.size(2) == 0,
        "cross_attention: the imported keys are {} and the values {} [B, S, kv_heads, head_dim]; they need "
        "head_dim {} and a divisor of {} heads",
        shape_text(keys.k), shape_text(keys.v), o_.head_dim, o_.heads);
    auto q = q_norm_(q_(x).unflatten(-1, {o_.heads, o_.head_dim}));
    const auto lengths =
        rotary_.by_length() ? document_lengths(context.positions, context.segments, context) : at::Tensor();
    q = rotary_(q, context.positions, lengths);
    const bool segmented = o_.causal && keys.segments.defined() && context.segments.defined();
    const ops::Mask mask{.causal = o_.causal,
                         .window = o_.window,
                         .q_positions = context.positions,
                         .k_positions = keys.positions,
                         .q_segments = segmented ? context.segments : at::Tensor(),
                         .k_segments = segmented ? keys.segments : at::Tensor()};
    return out_(scores_(q, keys.k, keys.v, mask).flatten(2));
  }

  State initial_state(int64_t, const at::TensorOptions&) const override { return {}; }
  Summary summary(const at::Tensor&, const State&, const Context&) override { return {}; }
  std::vector<std::string> import_ports() const override { return {"kv"}; }
  double op_flops(int64_t context) const override {
    return 4.0 * static_cast<double>(o_.heads * o_.head_dim *
                                     (o_.window > 0 ? std::min(context, o_.window) : context));
  }
  std::vector<std::string> ops() const override {
    return rotary_ ? std::vector<std::string>{"attention", "rope"} : std::vector<std::string>{"attention"};
  }

 private:
  static Options resolved(Options o, const Site& site) {
    o.head_dim = head_dim_of(o.head_dim, o.heads, site);
    return o;
  }

  Options o_;
  Rotary rotary_;
  Scores scores_;
  Linear q_, out_;
  Norm q_norm_;
};
const Register<CrossAttention> register_cross_attention{"cross_attention",
                                                        "attention over keys and values of another layer"};

}  // namespace
}  // namespace weft
