// Experts whose router looks back at the router of the layer before, and may choose to do nothing. ZAYA1 (Zyphra 2025,
// arXiv:2511.17127):
//   r = W_d x + b_d (+ c * r of the layer before)         kept for the next layer as the strand "router"
//   p = softmax(W_3 gelu(W_2 gelu(W_1 rms(r) + b_1) + b_2))          over E experts and one that gives zero
//   e = argmax(p + b), b for balance, without gradient;   y = p_e f_e(x),  f_e(x) = W_down (act(W_gate x) * W_up x)
// A function of one token, without a state.
//
// R width of the router, E experts, I width of an expert.
#include <cmath>

#include "nn/mixer.h"
#include "ops/moe/moe.h"
#include "ops/shape.h"

namespace weft {
namespace {

class SkipExperts final : public SequenceMixer {
 public:
  struct Options {
    int64_t experts = 4, hidden = 0, router = 64;
    bool carry = false;
    std::string activation = "silu";
    void fields(Fields& f) {
      f("experts", experts, "E, experts beside the one that does nothing", at_least(1));
      f("hidden", hidden, "I, width of an expert's hidden layer; 0 means the model's width", at_least(0));
      f("router", router, "R, width of the router", at_least(1));
      f("carry", carry, "add what the router of an earlier layer exported: import {router: NAME}");
      f("activation", activation, "of the experts' gates", one_of(ops::activation_names()));
    }
  };

  SkipExperts(const Options& options, const Site& site)
      : o_(options),
        width_(site.width),
        hidden_(o_.hidden > 0 ? o_.hidden : site.width),
        activation_(ops::activation_of(o_.activation)),
        down_(linear("router.down", width_, o_.router, {.bias = true})),
        first_(linear("router.first", o_.router, o_.router, {.bias = true})),
        second_(linear("router.second", o_.router, o_.router, {.bias = true})),
        out_(linear("router.out", o_.router, o_.experts + 1)),
        norm_(norm("router.norm", Norm::Kind::rms, o_.router, site.norm_eps)) {
    if (o_.carry) carry_ = vector_parameter("router.carry", {o_.router}, init::constant(1));
    balance_ = vector_parameter("router.balance", {o_.experts + 1}, init::constant(0));
    const auto stack = [&](const char* name, int64_t rows, int64_t columns, double scale) {
      return parameter(name, {o_.experts, rows, columns},
                       init::normal(scale / std::sqrt(3.0 * static_cast<double>(columns))),
                       {.share = 1.0 / static_cast<double>(o_.experts)});
    };
    up_ = stack("up", 2 * hidden_, width_, 1);
    expert_down_ = stack("down", width_, hidden_, site.residual_init());
  }

  at::Tensor run(const at::Tensor& x, State&, const Context& context) override {
    auto r = down_(x.to(accumulate_type(x)));
    if (o_.carry) r = r + context.import("router").at("router") * carry_->value.to(r.scalar_type());
    if (context.wants("router")) (*context.exports)["router"] = {.tensors = {{"router", r}}};
    const auto logits = out_(at::gelu(second_(at::gelu(first_(norm_(r))))));
    const auto chances = at::softmax(logits, -1);  // [B, T, E + 1]
    const auto choice =
        (chances.detach() + balance_->value.detach().to(chances.scalar_type())).argmax(-1, true);
    const auto idle = choice == o_.experts;
    const auto weights = chances.gather(-1, choice).masked_fill(idle, 0);  // [B, T, 1]
    const auto y =
        ops::mix_experts(x.flatten(0, 1), {choice.masked_fill(idle, 0).flatten(0, 1), weights.flatten(0, 1)},
                         {up_->value, expert_down_->value, activation_, true});
    return y.view(x.sizes());
  }

  State initial_state(int64_t, const at::TensorOptions&) const override { return {}; }
  std::vector<std::string> import_ports() const override {
    return o_.carry ? std::vector<std::string>{"router"} : std::vector<std::string>{};
  }
  std::vector<std::string> export_ports() const override { return {"router"}; }
  std::vector<std::string> ops() const override { return {"norm"}; }

 private:
  Options o_;
  int64_t width_, hidden_;
  ops::Activation activation_;
  Linear down_, first_, second_, out_;
  Norm norm_;
  std::shared_ptr<Parameter> carry_, balance_, up_, expert_down_;
};
const Register<SkipExperts> register_skip_experts{
    "skip_experts", "experts behind a router that remembers the layer before, one of them idle (ZAYA1)"};

}  // namespace
}  // namespace weft
