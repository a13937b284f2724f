// Convolution over all channels with relu and norm: the layers in front of LMUFormer, which turn frames into tokens.
// Liu et al. 2024, arXiv:2402.04882.
//   y_t = norm(relu(sum_j K_j x_{t + j - (W - 1) / 2} (+ b)))        zeros outside the document
// `relu: false, out_norm: none` leaves the plain convolution that the paper adds as relative positions. The layer
// adds x to y, for which the paper's first convolutions have no room.
// Deviation: the paper's batch normalisation is a norm over a token's channels here, because statistics over the
// batch would make a token depend on others. `causal` looks at x_{t - W + 1}, ..., x_t instead, for streams.
//
// W width. State if causal: inputs [B, W - 1, D] in the activation type.
#include <cmath>

#include "base/error.h"
#include "nn/mixer.h"

namespace weft {
namespace {

class ConvBlock final : public SequenceMixer {
 public:
  struct Options {
    int64_t conv = 3;
    bool causal = false, relu = true, bias = false;
    std::string out_norm = "layer";
    void fields(Fields& f) {
      f("conv", conv, "W, width of the convolution; odd unless causal", at_least(1), at_most(64));
      f("causal", causal, "tokens see none that follow");
      f("relu", relu, "relu behind the convolution");
      f("out_norm", out_norm, "norm behind it, over a token's channels", one_of({"layer", "rms", "none"}));
      f("bias", bias, "a bias of the convolution");
    }
  };

  ConvBlock(const Options& options, const Site& site) : o_(options), width_(site.width) {
    require(o_.causal || o_.conv % 2 == 1, "{}: conv {} has no middle; give an odd width or causal: true",
            site.where, o_.conv);
    // [D, W D], the oldest token's channels first. Drawn as wide as the paper's framework does.
    const double bound = 1.0 / std::sqrt(static_cast<double>(o_.conv * width_));
    weight_ = parameter("conv.weight", {width_, o_.conv * width_}, init::uniform(-bound, bound));
    if (o_.bias) bias_ = vector_parameter("conv.bias", {width_}, init::uniform(-bound, bound));
    norm_ = norm("norm", norm_kind(o_.out_norm), width_, site.norm_eps);
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    if (x.size(1) == 0) return x;
    const auto type = x.scalar_type();
    const auto windows = windows_of(x, state, context);  // [B, T, W D]
    auto y = at::linear(windows, weight_->value.to(type), bias_ ? bias_->value.to(type) : at::Tensor());
    if (o_.causal) state.set("inputs", tail(windows));
    return norm_(o_.relu ? at::relu(y) : y);
  }

  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    if (o_.causal) state.set("inputs", at::zeros({batch, o_.conv - 1, width_}, options));
    return state;
  }

  Summary summary(const at::Tensor& x, const State& state, const Context& context) override {
    supported(o_.causal,
              "conv_block has no summary: it reads the tokens that follow, so it has the whole form only");
    Summary summary;
    summary.rest.set("inputs", x.size(1) == 0 ? state.at("inputs") : tail(windows_of(x, state, context)));
    return summary;
  }

  bool causal() const override { return o_.causal; }

 private:
  // The last token's window without its oldest token, which the next one no longer sees.
  at::Tensor tail(const at::Tensor& windows) const {
    return windows.select(1, windows.size(1) - 1).unflatten(1, {o_.conv, width_}).slice(1, 1);
  }

  // The W tokens that each output sees, oldest first, zeros outside its document: [B, T, W D].
  at::Tensor windows_of(const at::Tensor& x, const State& state, const Context& context) const {
    const int64_t tokens = x.size(1), ahead = o_.causal ? 0 : o_.conv / 2, behind = o_.conv - 1 - ahead;
    const auto past = o_.causal ? state.at("inputs") : at::zeros({x.size(0), behind, width_}, x.options());
    const auto padded = at::constant_pad_nd(at::cat({past, x}, 1), {0, 0, 0, ahead});
    at::Tensor documents;  // of the padded tokens; the past belongs to document 0, which may go on
    if (context.segments.defined())
      documents = at::constant_pad_nd(at::constant_pad_nd(context.segments, {behind, 0}, 0), {0, ahead}, -1);
    std::vector<at::Tensor> shifted;
    for (int64_t j = 0; j < o_.conv; ++j) {
      auto part = padded.slice(1, j, j + tokens);
      if (documents.defined()) {
        const auto same = documents.slice(1, j, j + tokens) == context.segments;
        part = part * same.unsqueeze(2).to(x.scalar_type());
      }
      shifted.push_back(part);
    }
    return at::cat(shifted, -1);
  }

  Options o_;
  int64_t width_;
  std::shared_ptr<Parameter> weight_, bias_;
  Norm norm_;
};
const Register<ConvBlock> register_conv_block{"conv_block",
                                              "convolution over all channels, relu, norm (LMUFormer's front "
                                              "end); use it to turn frames of a signal into tokens"};

}  // namespace
}  // namespace weft
