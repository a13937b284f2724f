#include "nn/mixers/rotary.h"

#include <ATen/Functions.h>

#include <cmath>
#include <numbers>

#include "base/error.h"
#include "ops/rope/rope.h"

namespace weft {

// A scaling with its own options. Both functions give fp64 radians a position for each of dim / 2 pairs.
struct Rotary::Scaling {
  virtual ~Scaling() = default;
  virtual bool by_length() const { return false; }
  virtual double magnitude() const { return 1.0; }
  // [dim / 2], for scalings that do not look at lengths.
  virtual at::Tensor fixed(double theta, int64_t dim) const;
  // [B, T, dim / 2] for lengths [B, T] of documents.
  virtual at::Tensor of_lengths(double theta, int64_t dim, const at::Tensor& lengths) const;
  // What is wrong with the options for so many rotated channels; "" if nothing is.
  virtual std::string complaint(int64_t) const { return ""; }
};

at::Tensor Rotary::Scaling::fixed(double, int64_t) const {
  invariant(false, "this scaling of rotary positions depends on the length");
  return {};
}
at::Tensor Rotary::Scaling::of_lengths(double, int64_t, const at::Tensor&) const {
  invariant(false, "this scaling of rotary positions does not depend on the length");
  return {};
}

namespace {

at::Tensor pair_numbers(int64_t dim) { return at::arange(dim / 2, at::kDouble); }

// theta^(-2 i / dim): [dim / 2]
at::Tensor unscaled_turns(double theta, int64_t dim) {
  return at::exp(pair_numbers(dim) * (-2.0 * std::log(theta) / static_cast<double>(dim)));
}

struct LinearScaling final : Rotary::Scaling {
  double factor = 1;
  void fields(Fields& f) { f("factor", factor, "positions are divided by this", above(0)); }
  at::Tensor fixed(double theta, int64_t dim) const override { return unscaled_turns(theta, dim) / factor; }
};

struct DynamicScaling final : Rotary::Scaling {
  double factor = 1;
  int64_t length = 0;
  void fields(Fields& f) {
    f("factor", factor, "how fast theta grows with the length", above(0));
    f("length", length, "tokens up to which nothing changes", at_least(1));
  }
  bool by_length() const override { return true; }
  std::string complaint(int64_t dim) const override {
    return dim < 4 ? "expected at least 4 rotated channels" : "";
  }
  at::Tensor of_lengths(double theta, int64_t dim, const at::Tensor& lengths) const override {
    const auto size = static_cast<double>(dim), limit = static_cast<double>(length);
    const auto stretch = factor * lengths.to(at::kDouble).clamp_min(limit) / limit - (factor - 1);
    const auto log_theta = at::log(stretch) * (size / (size - 2)) + std::log(theta);
    return at::exp(log_theta.unsqueeze(-1) * (pair_numbers(dim).to(lengths.device()) * (-2.0 / size)));
  }
};

// The factor on attention that YaRN's authors found for a stretch by `factor`.
double yarn_magnitude(double factor, double weight) {
  return factor <= 1 ? 1.0 : 0.1 * weight * std::log(factor) + 1.0;
}

struct YarnScaling final : Rotary::Scaling {
  double factor = 1, attention_factor = 0, mscale = 0, mscale_all_dim = 0, beta_fast = 32, beta_slow = 1;
  int64_t length = 0;
  bool truncate = true;
  void fields(Fields& f) {
    f("factor", factor, "slow pairs turn slower by this", above(0));
    f("length", length, "tokens that the model was trained on before", at_least(1));
    f("attention_factor", attention_factor, "magnitude of what is rotated; 0: that of mscale", at_least(0));
    f("mscale", mscale,
      "with mscale_all_dim: magnitude (0.1 mscale ln factor + 1) / (0.1 mscale_all_dim ln factor + 1)");
    f("mscale_all_dim", mscale_all_dim, "0, as for mscale: magnitude 0.1 ln factor + 1");
    f("beta_fast", beta_fast, "pairs with more turns within the length stay as they are", above(0));
    f("beta_slow", beta_slow, "pairs with fewer turns within the length are slowed down by the factor",
      above(0));
    f("truncate", truncate, "the two limits are rounded to whole pairs, outwards");
  }
  double magnitude() const override {
    if (attention_factor > 0) return attention_factor;
    if (mscale == 0 || mscale_all_dim == 0) return yarn_magnitude(factor, 1);
    return yarn_magnitude(factor, mscale) / yarn_magnitude(factor, mscale_all_dim);
  }
  // The number i, a fraction, of the pair that turns `turns` times within the length.
  double pair_with(double turns, double theta, int64_t dim) const {
    return static_cast<double>(dim) * std::log(static_cast<double>(length) / (turns * 2 * std::numbers::pi)) /
           (2 * std::log(theta));
  }
  at::Tensor fixed(double theta, int64_t dim) const override {
    double low = pair_with(beta_fast, theta, dim), high = pair_with(beta_slow, theta, dim);
    if (truncate) low = std::floor(low), high = std::ceil(high);
    low = std::max(low, 0.0);
    high = std::min(high, static_cast<double>(dim - 1));
    if (low == high) high += 0.001;
    const auto slowed = ((pair_numbers(dim) - low) / (high - low)).clamp(0, 1);
    const auto turns = unscaled_turns(theta, dim);
    return turns / factor * slowed + turns * (1 - slowed);
  }
};

struct LongRopeScaling final : Rotary::Scaling {
  std::vector<double> short_factors, long_factors;
  double factor = 1, attention_factor = 0;
  int64_t length = 0;
  void fields(Fields& f) {
    f("short", short_factors, "dim / 2 divisors of the frequencies in documents up to the length");
    f("long", long_factors, "and in longer ones");
    f("length", length, "tokens that the model was trained on before", at_least(2));
    f("factor", factor, "longest text now, over the length", above(0));
    f("attention_factor", attention_factor,
      "magnitude of what is rotated; 0: sqrt(1 + ln factor / ln length), 1 for factors up to 1", at_least(0));
  }
  bool by_length() const override { return true; }
  double magnitude() const override {
    if (attention_factor > 0) return attention_factor;
    return factor <= 1 ? 1.0 : std::sqrt(1 + std::log(factor) / std::log(static_cast<double>(length)));
  }
  std::string complaint(int64_t dim) const override {
    const auto half = static_cast<size_t>(dim / 2);
    if (short_factors.size() == half && long_factors.size() == half) return "";
    return fmt::format("{} short and {} long factors for {} pairs of channels", short_factors.size(),
                       long_factors.size(), half);
  }
  at::Tensor of_lengths(double theta, int64_t dim, const at::Tensor& lengths) const override {
    const auto all = unscaled_turns(theta, dim);
    const auto divided = [&](const std::vector<double>& by) {
      return (all / at::tensor(by, at::kDouble)).to(lengths.device());
    };
    return at::where((lengths > length).unsqueeze(-1), divided(long_factors), divided(short_factors));
  }
};

struct Llama3Scaling final : Rotary::Scaling {
  double factor = 1, low_frequency = 1, high_frequency = 4;
  int64_t length = 0;
  void fields(Fields& f) {
    f("factor", factor, "slow pairs turn slower by this", above(0));
    f("length", length, "tokens that the model was trained on before", at_least(1));
    f("low_frequency", low_frequency,
      "pairs with fewer turns within the length are slowed down by the factor");
    f("high_frequency", high_frequency, "pairs with more turns stay as they are");
  }
  std::string complaint(int64_t) const override {
    return high_frequency == low_frequency ? "low_frequency and high_frequency are equal" : "";
  }
  at::Tensor fixed(double theta, int64_t dim) const override {
    const auto all = unscaled_turns(theta, dim);
    const auto turns = all * (static_cast<double>(length) / (2 * std::numbers::pi));  // within the length
    const auto kept = (turns - low_frequency) / (high_frequency - low_frequency);
    const auto between = (1 - kept) * all / factor + kept * all;
    return at::where(turns < low_frequency, all / factor, at::where(turns > high_frequency, all, between));
  }
};

struct ProportionalScaling final : Rotary::Scaling {
  double share = 1, factor = 1;
  void fields(Fields& f) {
    f("share", share, "of the pairs, from the first, that turn", at_least(0), at_most(1));
    f("factor", factor, "positions are divided by this", above(0));
  }
  at::Tensor fixed(double theta, int64_t dim) const override {
    const double turning = std::floor(share * static_cast<double>(dim) / 2);
    return at::where(pair_numbers(dim) < turning, unscaled_turns(theta, dim) / factor, 0.0);
  }
};

// A scaling's options; InputError where its length is not given.
template <class T>
std::unique_ptr<Rotary::Scaling> read_scaling(const Node& options, const std::string& name) {
  auto scaling = std::make_unique<T>();
  FieldReader reader(options, name);
  scaling->fields(reader);
  reader.finish();
  if constexpr (requires { scaling->length; })
    require(scaling->length > 0, "{}: {} needs a length", options.where(), name);
  return scaling;
}

std::unique_ptr<Rotary::Scaling> make_scaling(const Node& node, const std::string& where) {
  const char* expected =
      "expected one of linear, dynamic, yarn, longrope, llama3, proportional with its options";
  require(node.is_map() && node.entries().size() == 1, "{}: rope_scaling: {}", where, expected);
  const auto& [name, options] = node.entries().front();
  if (name == "linear") return read_scaling<LinearScaling>(options, name);
  if (name == "dynamic") return read_scaling<DynamicScaling>(options, name);
  if (name == "yarn") return read_scaling<YarnScaling>(options, name);
  if (name == "longrope") return read_scaling<LongRopeScaling>(options, name);
  if (name == "llama3") return read_scaling<Llama3Scaling>(options, name);
  if (name == "proportional") return read_scaling<ProportionalScaling>(options, name);
  throw InputError(fmt::format("{}: rope_scaling: '{}': {}", where, name, expected));
}

}  // namespace

void RotaryOptions::fields(Fields& f) {
  f("rope", theta, "theta of the rotary embedding; 0 means none", at_least(0));
  f("rope_dim", dim, "rotated channels of a head; 0 means all", at_least(0));
  f("rope_interleaved", interleaved, "rotate neighbouring channels instead of the two halves");
  f("rope_scaling", scaling,
    "for longer texts: {linear: {factor}}, {dynamic: {factor, length}}, {yarn: {factor, length, "
    "attention_factor, "
    "mscale, mscale_all_dim, beta_fast, beta_slow, truncate}}, {longrope: {short, long, length, factor, "
    "attention_factor}}, {llama3: {factor, length, low_frequency, high_frequency}}, {proportional: {share, "
    "factor}}");
}

Rotary::Rotary() { options_.theta = 0; }
Rotary::~Rotary() = default;
Rotary::Rotary(Rotary&&) noexcept = default;
Rotary& Rotary::operator=(Rotary&&) noexcept = default;

Rotary::Rotary(const RotaryOptions& options, int64_t head_dim, const std::string& where) : options_(options) {
  if (options_.theta == 0) return;
  if (options_.dim == 0) options_.dim = head_dim;
  require(
      options_.dim <= head_dim && options_.dim % 2 == 0,
      "{}: the rotary embedding turns pairs of channels: rope_dim {} must be even and at most head_dim {}",
      where, options_.dim, head_dim);
  if (options_.scaling.is_null()) return;
  scaling_ = make_scaling(options_.scaling, where);
  const auto complaint = scaling_->complaint(options_.dim);
  require(complaint.empty(), "{}: rope_scaling: {}", where, complaint);
  if (!scaling_->by_length()) frequencies_ = scaling_->fixed(options_.theta, options_.dim);
}

bool Rotary::by_length() const { return scaling_ && scaling_->by_length(); }

at::Tensor Rotary::operator()(const at::Tensor& x, const at::Tensor& positions,
                              const at::Tensor& lengths) const {
  if (options_.theta == 0) return x;
  auto rope = turns(x.device());
  if (by_length()) rope.frequencies = scaling_->of_lengths(options_.theta, options_.dim, lengths);
  return ops::rope(x, positions, rope);
}

ops::Rope Rotary::turns(at::Device device) const {
  ops::Rope rope{.dim = options_.dim, .theta = options_.theta, .interleaved = options_.interleaved};
  if (!scaling_) return rope;
  // Copied to a GPU once: a copy in each step would wait for it and could not be recorded as a graph.
  if (!by_length() && frequencies_.device() != device) frequencies_ = frequencies_.to(device);
  rope.frequencies = frequencies_;
  rope.magnitude = scaling_->magnitude();
  return rope;
}

at::Tensor document_lengths(const at::Tensor& positions, const at::Tensor& segments, const Context& context) {
  if (context.positions.numel() == 0) return positions + 1;
  if (!segments.defined() || !context.segments.defined())
    return (context.positions.amax(1, true) + 1).expand_as(positions);
  const int64_t documents = context.segments.max().item<int64_t>() + 1;
  const auto longest = at::zeros({positions.size(0), documents}, positions.options())
                           .scatter_reduce(1, context.segments, context.positions + 1, "amax");
  return longest.gather(1, segments.clamp_max(documents - 1));
}

}  // namespace weft
