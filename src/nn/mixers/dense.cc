// A learned mixing matrix for each head, the same for every input: the null model for mixers on sequences of one
// length. Park et al. 2025, arXiv:2508.09153.
//   y[l] = L^-1/2 sum_t M[h, l, t] x[t] + x[l]      heads are slices of the channels; t <= l if causal
// M is learned entry by entry (dense), as t[l - t] (toeplitz), or as Q K' of some rank (low_rank). Nothing is projected:
// the input goes straight into the sum, as where the paper replaces attention. `projections` is the shape of its
// state-space models instead: x = silu(scale W_in u + bias), y behind W_out; their gate is not used in the paper
// and is not made here. Tokens l and t count from the beginning of their document, which has at most L.
//
// H heads, L length, E inner width. Looks ahead unless `causal`, which is an addition for language models.
// State if causal: inputs [B, L, E], those of the document so far at their places, in the activation type.
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "nn/mixer.h"

namespace weft {
namespace {

class Dense final : public SequenceMixer {
 public:
  struct Options {
    int64_t length = 0, heads = 1, rank = 8, expansion = 2;
    std::string kind = "dense";
    bool causal = false, projections = false;
    void fields(Fields& f) {
      f("length", length, "L, tokens of the longest document", at_least(0));
      f("heads", heads, "H, mixing matrices; they share the channels evenly", at_least(1));
      f("kind", kind, "structure of the matrix", one_of({"dense", "toeplitz", "low_rank"}));
      f("rank", rank, "rank of a low_rank matrix", at_least(1));
      f("causal", causal, "tokens see none that follow");
      f("projections", projections, "linear maps before and behind the matrix");
      f("expansion", expansion, "E / D with projections", at_least(1));
    }
  };

  Dense(const Options& options, const Site& site)
      : o_(options), inner_(options.projections ? options.expansion * site.width : site.width) {
    require(o_.length >= 1, "{}: dense needs length: L, the tokens of the longest document", site.where);
    require(inner_ % o_.heads == 0, "{}: heads {} does not divide the width {}", site.where, o_.heads,
            inner_);
    // Xavier on a tensor [H, L, L] as the paper's framework counts: L^2 inputs, H L outputs.
    const auto length = static_cast<double>(o_.length);
    const double std = std::sqrt(2 / (length * length + static_cast<double>(o_.heads) * length));
    const ParameterRules rules{.role = ParameterRules::Role::vector};
    if (o_.kind == "dense") {
      mix_ = parameter("mix", {o_.heads, o_.length, o_.length}, init::normal(std), rules);
    } else if (o_.kind == "toeplitz") {
      mix_ = parameter("mix", {o_.heads, diagonals()}, init::normal(std), rules);
    } else {
      const double factor =
          std::sqrt(std / std::sqrt(static_cast<double>(o_.rank)));  // entries as spread as dense
      mix_ = parameter("query", {o_.heads, o_.length, o_.rank}, init::normal(factor), rules);
      key_ = parameter("key", {o_.heads, o_.length, o_.rank}, init::normal(factor), rules);
    }
    if (!o_.projections) return;
    in_ = linear("in", site.width, inner_);
    scale_ = vector_parameter("conv.weight", {inner_}, init::uniform(-1, 1));  // a convolution of width 1
    bias_ = vector_parameter("conv.bias", {inner_}, init::uniform(-1, 1));
    out_ = linear("out", inner_, site.width, {.scale = site.residual_init()});
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    if (x.size(1) == 0) return x;
    const auto u = project(x);
    const auto y = mix(u, state, context) + u;
    if (o_.causal && context.keep_state) state.set("inputs", store(state.at("inputs"), u, context));
    return o_.projections ? out_(y) : y;
  }

  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    if (o_.causal) state.set("inputs", at::zeros({batch, o_.length, inner_}, options));
    return state;
  }

  // The places that the span fills forget what they held, all if a document begins.
  Summary summary(const at::Tensor& x, const State& state, const Context& context) override {
    supported(o_.causal,
              "dense has no summary: it reads the tokens that follow, so it has the whole form only");
    const auto before = state.at("inputs");
    Summary summary;
    const auto kept = at::ones({x.size(0), o_.length, 1}, before.options());
    const auto none = at::zeros({x.size(0), x.size(1), 1}, before.options());
    summary.maps["inputs"] = x.size(1) == 0 ? AffineMap{kept, at::zeros_like(before)}
                                            : AffineMap{store(kept, none, context),
                                                        store(at::zeros_like(before), project(x), context)};
    return summary;
  }

  bool causal() const override { return o_.causal; }
  double op_flops(int64_t context) const override {
    const int64_t seen = o_.causal ? std::min(context + 1, o_.length) : o_.length;
    return 2.0 * static_cast<double>(inner_ * seen);
  }

 private:
  int64_t diagonals() const { return o_.causal ? o_.length : 2 * o_.length - 1; }

  at::Tensor project(const at::Tensor& x) const {
    if (!o_.projections) return x;
    return at::silu(in_(x) * scale_->value.to(x.scalar_type()) + bias_->value.to(x.scalar_type()));
  }

  // The whole matrix, scaled, with zeros above the diagonal if causal: [H, L, L].
  at::Tensor matrix(at::ScalarType type) const {
    auto m = mix_->value;
    if (o_.kind == "toeplitz") {
      const auto place = at::arange(o_.length, m.options().dtype(at::kLong));
      const auto back = place.unsqueeze(1) - place;  // [L, L]: l - t
      const auto index = o_.causal ? back.clamp_min(0) : back + (o_.length - 1);
      m = m.index_select(1, index.flatten()).view({o_.heads, o_.length, o_.length});
    } else if (o_.kind == "low_rank") {
      m = at::matmul(m, key_->value.transpose(1, 2));
    }
    if (o_.causal) m = m.tril();
    return (m * (1 / std::sqrt(static_cast<double>(o_.length)))).to(type);
  }

  // [B, S, E] -> [H, B, S, E / H]
  at::Tensor split(const at::Tensor& u) const {
    return u.unflatten(-1, {o_.heads, -1}).permute({2, 0, 1, 3});
  }

  at::Tensor mix(const at::Tensor& u, const State& state, const Context& context) const {
    const auto& positions = context.positions;
    const int64_t tokens = u.size(1), last = positions.max().item<int64_t>();
    require(last < o_.length, "dense: a document has {} tokens, but length is {}", last + 1, o_.length);
    const auto m = matrix(u.scalar_type());
    const int64_t first = positions.select(1, 0).min().item<int64_t>();
    if (!context.starts.defined() && positions.select(1, 0).max().item<int64_t>() == first) {
      const auto seen = o_.causal ? at::cat({state.at("inputs").slice(1, 0, first), u}, 1) : u;  // [B, S, E]
      const auto part = m.slice(1, first, first + tokens).slice(2, o_.causal ? 0 : first, first + tokens);
      const auto columns = split(seen).transpose(1, 2);  // [H, S, B, E / H]: one product for all rows
      const auto y = at::matmul(part, columns.flatten(2)).unflatten(2, {u.size(0), -1});
      return y.permute({2, 1, 0, 3}).flatten(2);
    }
    return mix_documents(u, m, state, context);
  }

  // Rows and documents at places of their own: each token gathers its row of the matrix.
  at::Tensor mix_documents(const at::Tensor& u, const at::Tensor& m, const State& state,
                           const Context& context) const {
    const auto& place = context.positions;  // [B, T]
    const auto document = context.segments.defined() ? context.segments : at::zeros_like(place);
    auto seen = u, seen_place = place, seen_document = document;
    if (o_.causal) {
      const auto slots = at::arange(o_.length, place.options()).expand({u.size(0), o_.length});
      const auto filled = slots < place.slice(1, 0, 1);  // of the document that goes on; its number is 0
      seen = at::cat({state.at("inputs"), u}, 1);
      seen_place = at::cat({slots, place}, 1);
      seen_document =
          at::cat({at::where(filled, at::zeros_like(slots), at::full_like(slots, -1)), document}, 1);
    }
    auto visible = document.unsqueeze(2) == seen_document.unsqueeze(1);  // [B, T, S]
    const auto weights =
        at::index(m, {std::nullopt, place.unsqueeze(2), seen_place.unsqueeze(1)});  // [H, B, T, S]
    const auto y = at::matmul(weights * visible.to(u.scalar_type()), split(seen));  // [H, B, T, E / H]
    return y.permute({1, 2, 0, 3}).flatten(2);
  }

  // The inputs of each row's last document at their places: [B, L, E], u [B, T, E].
  at::Tensor store(const at::Tensor& before, const at::Tensor& u, const Context& context) const {
    const auto& place = context.positions;
    auto kept = before;
    auto slot = place;
    if (context.segments.defined()) {
      const auto last = context.segments.slice(1, u.size(1) - 1);
      kept = at::where((last > 0).unsqueeze(2), at::zeros_like(before), before);
      slot = at::where(context.segments == last, place,
                       at::full_like(place, o_.length));  // the others: thrown away
    }
    const auto room = at::zeros({before.size(0), 1, before.size(2)}, before.options());
    return at::scatter(at::cat({kept, room}, 1), 1, slot.unsqueeze(2).expand_as(u), u).slice(1, 0, o_.length);
  }

  Options o_;
  int64_t inner_;
  Linear in_, out_;
  std::shared_ptr<Parameter> mix_, key_, scale_, bias_;
};
const Register<Dense> register_dense{"dense",
                                     "a learned matrix over the tokens, the same for every input "
                                     "(JustDense); use it for series of one length and as "
                                     "the baseline that other mixers must beat"};

}  // namespace
}  // namespace weft
