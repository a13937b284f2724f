// Legendre Memory Unit: one learned scalar a token drives a fixed linear memory of the last `window` inputs.
// Voelker et al. 2019; in parallel over tokens Chilkuri and Eliasmith 2021, arXiv:2102.11417; as the mixer of
// LMUFormer Liu et al. 2024, arXiv:2402.04882.
//   u_t = relu(W_u x_t + b_u)                   one scalar for each memory channel
//   m_t = A m_{t-1} + B u_t                     A, B fixed (legendre.h), discretised in fp64; no parameters
//   h_t = relu(W_h [m_t; x_t] + b_h);  y_t = W_out h_t + b_out
// `spiking` turns activations into spikes of LIF neurons (ops/lif) along the sequence, with states of their own:
//   s = lif_.5(x);  u = lif(W_u s + b_u);  m = lif(norm(memory of u));  h = lif(norm(W_h [m; s] + b_h))
// Deviation: the paper normalises over batch and time there and at u (batch normalisation), which makes a token
// depend on later ones, and step unequal to whole. Here norm is layer norm over a token's channels, and u, a single
// channel, has only the scale and bias of its projection. The norms around the mixer are the layer's.
//
// N memory order, C memory channels, E hidden width. State, fp32: m [B, N, C]; spiking also v_x [B, D], v_u [B, C],
// v_m [B, N C], v_h [B, E].
#include <cmath>

#include "base/error.h"
#include "nn/mixer.h"
#include "nn/mixers/legendre.h"
#include "nn/mixers/step_size.h"
#include "ops/lif/lif.h"
#include "ops/shape.h"

namespace weft {
namespace {

class Lmu final : public SequenceMixer {
 public:
  struct Options {
    int64_t memory = 0, hidden = 0, memory_channels = 1;
    double window = 128, tau = 2, alpha = 4;
    bool spiking = false;
    void fields(Fields& f) {
      f("memory", memory, "N, order of the memory; 0 means the model width", at_least(0), at_most(1024));
      f("window", window, "theta, tokens that the memory looks back", at_least(1));
      f("hidden", hidden, "E, width of the read-out; 0 means the model width", at_least(0));
      f("memory_channels", memory_channels, "C, scalars that are remembered; 1 in the papers", at_least(1));
      f("spiking", spiking, "leaky integrate-and-fire neurons in place of relu");
      f("tau", tau, "tokens that a spiking neuron needs to leak", at_least(1));
      f("alpha", alpha, "steepness of the spikes' surrogate gradient", above(0));
    }
  };

  Lmu(const Options& options, const Site& site) : o_(options), width_(site.width) {
    if (o_.memory == 0) o_.memory = width_;
    if (o_.hidden == 0) o_.hidden = width_;
    // A fifth of the input's neurons fires for normed x; weights of this size give u a standard deviation of one then.
    const double drive = o_.spiking ? std::sqrt(15.0) : scale_of(width_);
    in_ = linear("in", width_, o_.memory_channels, {.bias = true, .scale = drive});
    const int64_t seen = o_.memory * o_.memory_channels + width_;
    hidden_ = linear("hidden", seen, o_.hidden, {.bias = true, .scale = scale_of(seen)});
    out_ = linear("out", o_.hidden, width_, {.bias = true});
    if (o_.spiking) {
      memory_norm_ = norm("memory_norm", Norm::Kind::layer, o_.memory * o_.memory_channels, site.norm_eps);
      hidden_norm_ = norm("hidden_norm", Norm::Kind::layer, o_.hidden, site.norm_eps);
    }
    tables_[0] = legendre_tables(discretised(legendre_memory(o_.memory, o_.window)), kSpan);
    tables_[1] = {tables_[0].powers.to(at::kFloat), tables_[0].response.to(at::kFloat)};
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    if (x.size(1) == 0) return x;
    const auto seen = o_.spiking ? fire(x, "v_x", 0.5, state, context) : x;
    const auto drive = in_(seen);
    auto memory =
        remember(o_.spiking ? fire(drive, "v_u", 1, state, context) : at::relu(drive), state, context)
            .to(x.scalar_type());  // [B, T, N C]
    if (o_.spiking) memory = fire(memory_norm_(memory), "v_m", 1, state, context);
    const auto hidden = hidden_(at::cat({memory, seen}, -1));
    return out_(o_.spiking ? fire(hidden_norm_(hidden), "v_h", 1, state, context) : at::relu(hidden));
  }

  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    const auto wide = state_options(options);
    State state;
    state.set("m", at::zeros({batch, o_.memory, o_.memory_channels}, wide));
    if (!o_.spiking) return state;
    state.set("v_x", at::zeros({batch, width_}, wide));
    state.set("v_u", at::zeros({batch, o_.memory_channels}, wide));
    state.set("v_m", at::zeros({batch, o_.memory * o_.memory_channels}, wide));
    state.set("v_h", at::zeros({batch, o_.hidden}, wide));
    return state;
  }

  Summary summary(const at::Tensor& x, const State& state, const Context& context) override {
    supported(
        !o_.spiking,
        "a spiking lmu has no affine summary: what enters its memory depends on neurons that reset; run "
        "spans in order");
    State from_nothing = initial_state(x.size(0), x.options());
    if (x.size(1) > 0) remember(at::relu(in_(x)), from_nothing, context);
    const auto start = state.at("m");
    auto factor = at::eye(o_.memory, start.options()).expand({x.size(0), o_.memory, o_.memory});
    const auto& tables = tables_of(start);
    const auto last = tables.powers.size(0) - 1;
    for (int64_t left = x.size(1), j; left > 0; left -= int64_t{1} << j) {
      for (j = last; (int64_t{1} << j) > left;) --j;
      factor = at::matmul(tables.powers[j].to(start.device()), factor);
    }
    if (context.starts.defined())
      factor = at::where(context.starts.any(1).view({-1, 1, 1}), at::zeros_like(factor), factor);
    Summary summary;
    summary.maps["m"] = {factor, from_nothing.at("m"), true};
    return summary;
  }

  // As one token at a time; a span of T costs 2 C N min(T, 256) for the response and as much for what was before.
  double op_flops(int64_t) const override {
    return static_cast<double>(2 * o_.memory_channels * o_.memory * (o_.memory + 1));
  }
  std::vector<std::string> ops() const override {
    return o_.spiking ? std::vector<std::string>{"lif", "norm"} : std::vector<std::string>{};
  }

 private:
  static constexpr int64_t kSpan = 256;  // tokens at once: the Toeplitz matrix of a span is kSpan^2

  // The paper draws weights with a standard deviation of .02 whatever their number; `linear` divides by sqrt(3 in).
  static double scale_of(int64_t in) { return 0.02 * std::sqrt(3.0 * static_cast<double>(in)); }

  const LegendreTables& tables_of(const at::Tensor& like) const {
    return tables_[like.scalar_type() == at::kDouble ? 0 : 1];
  }

  at::Tensor fire(const at::Tensor& x, const char* name, double threshold, State& state,
                  const Context& context) const {
    auto result = ops::lif({.x = x,
                            .initial_state = state.at(name),
                            .starts = context.starts,
                            .tau = o_.tau,
                            .threshold = threshold,
                            .alpha = o_.alpha});
    state.set(name, result.state);
    return result.spikes;
  }

  // u [B, T, C] -> memory [B, T, N C] fp32 or fp64; moves "m" on.
  at::Tensor remember(const at::Tensor& u, State& state, const Context& context) const {
    std::vector<at::Tensor> spans;
    auto m = state.at("m");
    for (int64_t begin = 0; begin < u.size(1); begin += kSpan) {
      const int64_t end = std::min(u.size(1), begin + kSpan);
      const auto starts = context.starts.defined() ? context.starts.slice(1, begin, end) : at::Tensor();
      const auto span = remember_span(u.slice(1, begin, end).to(accumulate_type(u)), m, starts);
      m = span.select(1, end - begin - 1);
      spans.push_back(span.flatten(2));
    }
    state.set("m", m);
    return at::cat(spans, 1);
  }

  // u [B, T, C], m [B, N, C] -> the memory after each token, [B, T, N, C].
  at::Tensor remember_span(const at::Tensor& u, const at::Tensor& m, const at::Tensor& starts) const {
    const int64_t tokens = u.size(1);
    const auto& tables = tables_of(u);
    // Row t holds u_{t-T+1}, ..., u_t; before the span lie zeros.
    auto windows =
        at::constant_pad_nd(u.transpose(1, 2), {tokens - 1, 0}).unfold(2, tokens, 1);  // [B, C, T, T]
    auto before = carried(m, tokens, tables);                                          // [B, T, N, C]
    if (starts.defined()) {
      const auto place = at::arange(tokens, starts.options().dtype(at::kLong));
      const auto first = std::get<0>(at::where(starts, place, -1).cummax(1));  // [B, T]; -1: none so far
      const auto age = (tokens - 1 - place).view({1, 1, tokens});
      const auto reach = (place - first).unsqueeze(2);  // [B, T, 1]
      windows = at::where((age <= reach).unsqueeze(1), windows, at::zeros({}, u.options()));
      before = at::where((first < 0).view({-1, tokens, 1, 1}), before, at::zeros({}, u.options()));
    }
    const auto response = tables.response.slice(1, 0, tokens).flip(1).t().to(u.device());  // [T, N]
    return at::matmul(windows, response).permute({0, 2, 3, 1}) + before;
  }

  // A^(t + 1) m for t = 0, ..., T - 1, by doubling: [B, N, C] -> [B, T, N, C].
  static at::Tensor carried(const at::Tensor& m, int64_t tokens, const LegendreTables& tables) {
    auto known = at::matmul(tables.powers[0].to(m.device()), m).unsqueeze(1);  // [B, 1, N, C]
    for (int64_t j = 0; known.size(1) < tokens; ++j) {
      const auto more = known.slice(1, 0, tokens - known.size(1));
      known = at::cat({known, at::matmul(tables.powers[j].to(m.device()), more)}, 1);
    }
    return known;
  }

  Options o_;
  int64_t width_;
  Linear in_, hidden_, out_;
  Norm memory_norm_, hidden_norm_;
  LegendreTables tables_[2];  // fp64, fp32
};
const Register<Lmu> register_lmu{"lmu",
                                 "fixed linear memory of a sliding window, driven by one scalar, spiking if "
                                 "wanted (LMU, LMUFormer); use it for "
                                 "small streaming classifiers of signals"};

}  // namespace
}  // namespace weft
