// Mixture of experts: a router sends each token to a few of many small MLPs. Shazeer et al. 2017, arXiv:1701.06538;
// experts that all tokens share: Dai et al. 2024, arXiv:2401.06066; routing: ops/moe/moe.h.
//   chosen, w = route(W_r x)                                      fp32
//   y = W_out sum over e in chosen of w_e f_e(W_in x) + sigmoid(W_s x) f_shared(x)
// f_e and f_shared are MLPs (mlp.h); W_in and W_out are there with `latent` only, the sigmoid with `shared_gate`.
//
// E experts of hidden width I; Z width of what the experts see (that of the model, or `latent`).
#include <cmath>

#include "base/error.h"
#include "nn/ffn/mlp.h"
#include "ops/moe/moe.h"
#include "ops/shape.h"

namespace weft {
namespace {

std::vector<std::string> score_names() {
  auto names = ops::activation_names();
  names.insert(names.begin(), "softmax");
  return names;
}

class MixtureOfExperts final : public ChannelMixer {
 public:
  struct Options {
    int64_t hidden = 0, experts = 8, top_k = 2;
    std::string activation = "silu";
    bool gated = true;
    std::string router = "softmax";
    bool choice_bias = false, normalise = true;
    double normalise_eps = 0, scale = 1;
    int64_t groups = 1, top_groups = 1, group_best = 2, always = 0;
    bool gain = false;
    int64_t shared = 0;
    bool shared_gate = false, shared_bias = false;
    int64_t latent = 0;
    bool latent_bias = false;
    double gate_cap = 0, up_cap = 0;
    void fields(Fields& f) {
      f("hidden", hidden,
        "I, hidden width of an expert; 0 means 8/3 of the model width rounded up to 64, or 4 times the width "
        "without a "
        "gate, divided by top_k",
        at_least(0));
      f("experts", experts, "E, experts of which each token takes some", at_least(1));
      f("top_k", top_k, "experts of a token", at_least(1));
      f("activation", activation, "of the gate, or of the hidden layer without one",
        one_of(ops::activation_names()));
      f("gated", gated, "multiply the activation of the gate by a second projection");
      f("router", router, "scores of the experts from their logits: softmax or an activation",
        one_of(score_names()));
      f("choice_bias", choice_bias,
        "a bias on the scores that counts for the choice of experts only; not trained");
      f("normalise", normalise,
        "divide the weights of the chosen experts by their sum; with softmax that is a softmax over the "
        "chosen only");
      f("normalise_eps", normalise_eps, "added to that sum", at_least(0));
      f("scale", scale, "multiplies the weights");
      f("groups", groups, "equal runs of experts of which only the best top_groups count", at_least(1));
      f("top_groups", top_groups, "groups from which a token takes experts", at_least(1));
      f("group_best", group_best, "a group is as good as the sum of its so many best experts", at_least(1));
      f("always", always,
        "more experts, behind the E, that every token takes; their weights come from the router too",
        at_least(0));
      f("gain", gain, "a learned factor on all weights");
      f("shared", shared, "hidden width of an MLP that every token takes, beside the experts; 0 means none",
        at_least(0));
      f("shared_gate", shared_gate,
        "multiply its output by a sigmoid of one number that is computed from the token");
      f("shared_bias", shared_bias, "biases in it");
      f("latent", latent, "Z, width that tokens are projected to for the experts; 0 means none", at_least(0));
      f("latent_bias", latent_bias, "biases on the projections to and from it");
      f("gate_cap", gate_cap,
        "c: the gate g of an expert counts as c tanh(g / c) sigmoid(g); 0: g sigmoid(g)", at_least(0));
      f("up_cap", up_cap, "c: the other projection u as c tanh(u / c); 0: u", at_least(0));
    }
  };

  MixtureOfExperts(const Options& options, const Site& site)
      : o_(resolved(options, site)), activation_(ops::activation_of(o_.activation)) {
    const int64_t all = o_.experts + o_.always, z = o_.latent ? o_.latent : site.width;
    router_ = linear("router", site.width, all, {.rules = {.keep_float = true}});
    if (o_.choice_bias) choice_bias_ = vector_parameter("choice_bias", {o_.experts}, init::constant(0));
    if (o_.gain) gain_ = vector_parameter("gain", {1}, init::constant(1));
    if (o_.latent) {
      latent_in_ = linear("latent_in", site.width, z, {.bias = o_.latent_bias});
      latent_out_ =
          linear("latent_out", z, site.width, {.bias = o_.latent_bias, .scale = site.residual_init()});
    }
    const auto stack = [&](const char* name, int64_t rows, int64_t columns, double scale) {
      const double share = static_cast<double>(o_.top_k + o_.always) / static_cast<double>(all);
      return parameter(name, {all, rows, columns},
                       init::normal(scale / std::sqrt(3.0 * static_cast<double>(columns))), {.share = share});
    };
    up_ = stack("up", o_.gated ? 2 * o_.hidden : o_.hidden, z, 1);
    down_ = stack("down", z, o_.hidden, o_.latent ? 1 : site.residual_init());
    if (o_.shared) {
      shared_ = std::make_unique<Mlp>(
          Mlp::Options{
              .hidden = o_.shared, .activation = o_.activation, .gated = o_.gated, .bias = o_.shared_bias},
          site);
      add_child("shared", *shared_);
      if (o_.shared_gate) shared_gate_ = linear("shared_gate", site.width, 1);
    }
  }

  at::Tensor run(const at::Tensor& x, const Context& context) override {
    const auto tokens = x.flatten(0, -2);  // [N, D]
    auto routes = ops::route(router_(tokens.to(accumulate_type(x))), router());
    if (o_.gain) routes.weights = routes.weights * gain_->value;
    auto y = ops::mix_experts(o_.latent ? latent_in_(tokens) : tokens, routes,
                              {up_->value, down_->value, activation_, o_.gated, o_.gate_cap, o_.up_cap});
    if (o_.latent) y = latent_out_(y);
    y = y.view(x.sizes());
    if (!shared_) return y;
    const auto shared = shared_->run(x, context);
    return y + (o_.shared_gate ? at::sigmoid(shared_gate_(x)) * shared : shared);
  }

 private:
  static Options resolved(Options o, const Site& site) {
    if (o.hidden == 0) o.hidden = std::max<int64_t>(1, default_hidden(site.width, o.gated) / o.top_k);
    require(o.experts % o.groups == 0, "{}: {} experts do not fall into {} equal groups", site.where,
            o.experts, o.groups);
    require(o.top_groups <= o.groups, "{}: top_groups {} of {} groups", site.where, o.top_groups, o.groups);
    require(o.top_k <= o.experts / o.groups * o.top_groups, "{}: top_k {} of {} experts{}", site.where,
            o.top_k, o.experts / o.groups * o.top_groups, o.groups > 1 ? " in the groups that count" : "");
    require((o.gate_cap == 0 && o.up_cap == 0) || (o.gated && o.activation == "silu"),
            "{}: gate_cap and up_cap are of gated experts with silu", site.where);
    require(!o.shared_gate || o.shared > 0, "{}: shared_gate needs a shared MLP: give its width as `shared`",
            site.where);
    return o;
  }

  ops::Router router() const {
    using Scores = ops::Router::Scores;
    const bool softmax = o_.router == "softmax";
    return {.scores = softmax                  ? Scores::softmax
                      : o_.router == "sigmoid" ? Scores::sigmoid
                                               : Scores::activation,
            .activation = softmax ? ops::Activation::sigmoid : ops::activation_of(o_.router),
            .top_k = o_.top_k,
            .always = o_.always,
            .normalise = o_.normalise,
            .normalise_eps = o_.normalise_eps,
            .scale = o_.scale,
            .groups = o_.groups,
            .top_groups = o_.top_groups,
            .group_best = o_.group_best,
            .choice_bias = choice_bias_ ? choice_bias_->value : at::Tensor()};
  }

  Options o_;
  ops::Activation activation_;
  Linear router_, latent_in_, latent_out_, shared_gate_;
  std::shared_ptr<Parameter> choice_bias_, gain_, up_, down_;
  std::unique_ptr<Mlp> shared_;
};
const RegisterChannel<MixtureOfExperts> register_moe{
    "moe", "mixture of experts: each token takes a few of many MLPs"};

}  // namespace
}  // namespace weft
