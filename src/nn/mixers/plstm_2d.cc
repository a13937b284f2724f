// pLSTM on a grid: states travel along its edges, from every cell to the right and down, and in the other
// orientations; with positions or without, and on larger grids than it was trained on. Poppel et al. 2025,
// arXiv:2506.11997. Gates are scalars of a head, an orientation and a cell, S, M = sigmoid(W x + b) and
// t = tanh(5 (W x + b)):
//   R(i,j) = T_rl R(i,j-1) + T_ru D(i-1,j) + S_r k v'          right edge; D alike with T_dl, T_du, S_d
//   h(i,j) = ([M_l R(i,j-1) + M_u D(i-1,j)]' q + d (q.k) v) / sqrt(K),  d = sigmoid(b);   y = W_o RMSNorm(h)
// P, propagation in a direction a = sigmoid(b + W x / (2 D)):
//   T_rl = T_ru = |t| a,  T_dl = T_du = |t| (1 - a),  S_r = S a,  S_d = S (1 - a),  M_l = M_u     (Eq. 10)
//   or, with bounded: false, T_rl = T_ru = t a, T_dl = T_du = 1 - t a, S_d = 1 - S_r as in the authors' code; this
//   grows without bound where t < 0
// D, distribution without decay, one way between any two cells:
//   T_rl, T_du and the turn T_ru with a t each, T_dl = 0; S_r, S_d, M_l, M_u each their own
//
// Tokens stand row by row; a document is a grid of its own. Cells missing in its last row carry nothing.
// H heads, K width of a key and of a value, W orientations. Not causal: it has the whole form only, and no state.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <cmath>
#include <map>

#include "base/error.h"
#include "nn/mixer.h"
#include "nn/mixers/heads.h"
#include "nn/mixers/plstm_gates.h"
#include "ops/grid/grid.h"
#include "ops/shape.h"

namespace weft {
namespace {

class Plstm2d final : public SequenceMixer {
 public:
  struct Options {
    int64_t heads = 4, head_dim = 0, columns = 0, orientations = 4;
    std::string mode = "P", combine = "fused";
    bool bounded = true;
    double gate_std = 0;
    void fields(Fields& f) {
      f("heads", heads, "H, heads", at_least(1));
      f("head_dim", head_dim, "K, width of one head; 0 means width / heads", at_least(0));
      f("columns", columns, "of the grid, rows follow from the tokens; 0 means a square", at_least(0));
      f("mode", mode, "P propagates in a direction and decays, D distributes without decay",
        one_of({"P", "D"}));
      f("orientations", orientations, "W: right and down, left and up, left and down, right and up",
        at_least(1), at_most(4));
      f("combine", combine, "orientations: fused adds them before the norm, averaged after it",
        one_of({"fused", "averaged"}));
      f("bounded", bounded, "P: the paper's stable transitions; false for those of its code");
      f("gate_std", gate_std, "of the gates' input weights before training; 0 starts from constant gates",
        at_least(0));
    }
  };

  Plstm2d(const Options& options, const Site& site)
      : o_(options),
        head_dim_(head_dim_of(o_.head_dim, o_.heads, site)),
        inner_(o_.heads * head_dim_),
        gate_count_(o_.mode == "P" ? 3 : 7),
        direction_scale_(0.5 / static_cast<double>(site.width)) {
    const LinearOptions projection{.scale = kPlstmProjection};
    q_ = linear("q", site.width, inner_, projection);
    k_ = linear("k", site.width, inner_, projection);
    v_ = linear("v", site.width, inner_, projection);
    out_ = linear("out", inner_, site.width, projection);
    const auto gate_options = plstm_gate_options(o_.gate_std, site.width);
    const int64_t one_each = o_.orientations * o_.heads;
    gates_ = linear("gates", site.width, gate_count_ * one_each, gate_options);
    const double s = kPlstmSource, m = kPlstmMark, t = kPlstmTransition;
    bias_ = vector_parameter(
        "gates.bias", {gate_count_, o_.orientations, o_.heads},
        plstm_gate_bias(o_.mode == "P" ? std::vector{s, m, t} : std::vector{s, s, m, m, t, t, t}));
    if (o_.mode == "P") {
      direction_ = linear("direction", site.width, one_each, gate_options);
      direction_bias_ = vector_parameter("direction.bias", {o_.orientations, o_.heads},
                                         [](at::Tensor& value, at::Generator&) {
                                           const int64_t heads = value.size(1);
                                           if (heads > 1)
                                             value.copy_(at::linspace(-2, 2, heads).expand_as(value));
                                         });
    }
    direct_ = vector_parameter("direct", {o_.heads}, init::constant(kPlstmDirect));
    norm_ = norm("norm", Norm::Kind::rms, head_dim_, site.norm_eps);
    for (const auto& way : {ops::GridWay{false, false}, {true, true}, {false, true}, {true, false}})
      if (static_cast<int64_t>(ways_.size()) < o_.orientations) ways_.push_back(way);
  }

  at::Tensor run(const at::Tensor& x, State&, const Context& context) override {
    return context.starts.defined() ? documents(x, context.starts) : one_grid(x);
  }

  State initial_state(int64_t, const at::TensorOptions&) const override { return {}; }
  bool causal() const override { return false; }
  Summary summary(const at::Tensor&, const State&, const Context&) override {
    throw Unsupported("plstm_2d has no summary: it reads cells on all sides, so it has the whole form only");
  }
  double op_flops(int64_t context) const override {
    return static_cast<double>(context * o_.heads * (12 * o_.orientations + 4 * head_dim_));
  }
  std::vector<std::string> ops() const override { return {"grid", "norm"}; }

 private:
  // Documents of one length are a batch of grids.
  at::Tensor documents(const at::Tensor& x, const at::Tensor& starts) const {
    const int64_t batch = x.size(0), tokens = x.size(1);
    const auto begins = starts.cpu().contiguous();
    const auto* begin = begins.const_data_ptr<bool>();
    std::map<int64_t, std::vector<int64_t>> by_length;  // first tokens
    for (int64_t row = 0; row < batch; ++row)
      for (int64_t first = 0, t = 1; t <= tokens; ++t) {
        if (t < tokens && !begin[row * tokens + t]) continue;
        by_length[t - first].push_back(row * tokens + first);
        first = t;
      }
    if (by_length.empty()) return one_grid(x);
    const auto index = x.options().dtype(at::kLong);
    std::vector<at::Tensor> places, outputs;
    for (const auto& [length, firsts] : by_length) {
      const auto place = (at::tensor(firsts, index).unsqueeze(1) + at::arange(length, index)).flatten();
      const auto rows = x.flatten(0, 1).index_select(0, place).unflatten(0, {-1, length});
      places.push_back(place);
      outputs.push_back(one_grid(rows).flatten(0, 1));
    }
    const auto back = std::get<1>(at::cat(places).sort());
    return at::cat(outputs).index_select(0, back).view_as(x);
  }

  at::Tensor one_grid(const at::Tensor& x) const {
    const int64_t tokens = x.size(1);
    const auto side = static_cast<int64_t>(std::ceil(std::sqrt(static_cast<double>(tokens))));
    const int64_t columns = std::max<int64_t>(1, o_.columns > 0 ? o_.columns : side);
    const int64_t rows = (tokens + columns - 1) / columns;
    const auto grid =
        [&](const at::Tensor& y) {  // [B, T, ...] -> [B, R, C, ...], zeros behind the last token
          std::vector<int64_t> pad(static_cast<size_t>(2 * (y.dim() - 2)), 0);
          pad.insert(pad.end(), {0, rows * columns - tokens});
          return at::constant_pad_nd(y, pad).unflatten(1, {rows, columns});
        };
    const auto heads = [&](const at::Tensor& y) { return grid(y.unflatten(-1, {o_.heads, head_dim_})); };
    auto gates = o_.mode == "P" ? propagation(x) : distribution(x);
    for (auto* y : {&gates.transition, &gates.source, &gates.mark}) *y = grid(*y);
    gates.direct = at::sigmoid(direct_->value).expand({x.size(0), rows, columns, o_.heads});
    const ops::GridLinearAttention all{heads(q_(x)), heads(k_(x)), heads(v_(x)), gates};
    return out_(combined(all).flatten(1, 2).slice(1, 0, tokens).flatten(2));
  }

  // The normed read-out [B, R, C, H, K].
  at::Tensor combined(const ops::GridLinearAttention& all) const {
    if (o_.combine == "fused") return norm_(ops::grid_linear_attention(all));
    at::Tensor sum;
    for (size_t w = 0; w < ways_.size(); ++w) {
      auto one = all;
      for (auto* y : {&one.gates.transition, &one.gates.source, &one.gates.mark})
        *y = y->narrow(3, static_cast<int64_t>(w), 1);
      one.gates.ways = {ways_[w]};
      const auto y = norm_(ops::grid_linear_attention(one));
      sum = sum.defined() ? sum + y : y;
    }
    return sum / static_cast<double>(ways_.size());
  }

  // Before the activations, [B, T, W, H] each.
  std::vector<at::Tensor> logits(const at::Tensor& x) const {
    const auto all = gates_(x.to(accumulate_type(x))).unflatten(-1, {gate_count_, o_.orientations, o_.heads});
    return (all + bias_->value).unbind(2);
  }

  // Gates [B, T, W, H, ...] without direct.
  ops::GridGates propagation(const at::Tensor& x) const {
    const auto z = logits(x);
    const auto lean = direction_(x.to(accumulate_type(x))).unflatten(-1, {o_.orientations, o_.heads});
    const auto a = at::sigmoid(direction_bias_->value + direction_scale_ * lean);
    const auto s = at::sigmoid(z[0]), m = at::sigmoid(z[1]);
    const auto t = o_.bounded ? transition(z[2]).abs() : transition(z[2]);
    const auto right = t * a, source = s * a;
    const auto down = o_.bounded ? t * (1 - a) : 1 - right;
    const auto source_down = o_.bounded ? s * (1 - a) : 1 - source;
    const auto pair = [](const at::Tensor& first, const at::Tensor& second) {
      return at::stack({first, second}, -1);
    };
    return {at::stack({pair(right, right), pair(down, down)}, -2),
            pair(source, source_down),
            pair(m, m),
            {},
            ways_};
  }

  ops::GridGates distribution(const at::Tensor& x) const {
    const auto z = logits(x);
    const auto right = transition(z[4]), down = transition(z[5]), turn = transition(z[6]);
    const auto pair = [](const at::Tensor& first, const at::Tensor& second) {
      return at::stack({first, second}, -1);
    };
    return {at::stack({pair(right, turn), pair(at::zeros_like(down), down)}, -2),
            at::sigmoid(pair(z[0], z[1])),
            at::sigmoid(pair(z[2], z[3])),
            {},
            ways_};
  }

  Options o_;
  int64_t head_dim_, inner_, gate_count_;
  double direction_scale_;
  std::vector<ops::GridWay> ways_;
  Linear q_, k_, v_, out_, gates_, direction_;
  std::shared_ptr<Parameter> bias_, direction_bias_, direct_;
  Norm norm_;
};
const Register<Plstm2d> register_plstm_2d{
    "plstm_2d",
    "states that travel along the edges of a grid in four orientations (pLSTM in 2-D); use it for images and "
    "boards, also larger than those seen in training"};

}  // namespace
}  // namespace weft
