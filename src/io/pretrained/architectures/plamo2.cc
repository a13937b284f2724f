// PLaMo 2: Preferred Networks 2025, arXiv:2509.04897. Mamba-2 whose maps are projections of the convolved input, and
// attention in turn, each and the MLP behind it between two norms; the norms scale by an offset + weight.
#include <algorithm>
#include <cmath>

#include "io/pretrained/architectures/mlp.h"
#include "io/pretrained/architectures/state_space.h"

namespace weft {
namespace {

constexpr double kMixerOffset = 1.0 / 5;  // of the norms of what a mixer gives
constexpr double kHeadNormEps = 1e-6;     // of q and k, whatever rms_norm_eps is
const double kMlpOffset = 1 / std::pow(5, 1.5);

class Plamo2 {
 public:
  Plamo2(const ConfigReader& config, const TensorNames& tensors, Blueprint& out);
  void add_blocks();

 private:
  void read_attention(const ConfigReader& config);
  bool is_mamba(int64_t i) const;
  bool sees_all(int64_t i) const { return std::find(full_.begin(), full_.end(), i) != full_.end(); }
  Node mamba() const;
  Node attention(int64_t i) const;
  void take_mamba(const std::string& to, const std::string& from);
  void take_attention(const std::string& to, const std::string& from);
  // Adds a layer of one branch between its norms.
  std::string add_branch(Node layer, double offset);

  Blueprint& out_;
  double eps_;
  int64_t width_, layers_, head_dim_, hidden_;
  int64_t heads_, kv_heads_, window_;
  std::vector<int64_t> full_;
  double theta_, local_theta_;
  bool with_mamba_;
  int64_t period_, mamba_heads_, states_, conv_, rank_;
};

Plamo2::Plamo2(const ConfigReader& config, const TensorNames& tensors, Blueprint& out)
    : out_(out),
      eps_(config.number("rms_norm_eps", 1e-6)),
      width_(describe_frame(config, tensors, out, {"model.embed_tokens.weight"}, "model.norm.weight", eps_,
                            true)),
      layers_(config.integer("num_hidden_layers", 32)),
      head_dim_(config.integer("hidden_size_per_head", 128)),
      hidden_(config.integer("intermediate_size", 13312)),
      with_mamba_(config.flag("mamba_enabled", true)),
      period_(config.integer("mamba_step", 2)),
      mamba_heads_(config.integer("mamba_num_heads", 64)),
      states_(config.integer("mamba_d_state", 64)),
      conv_(config.integer("mamba_d_conv", 4)),
      rank_(std::max<int64_t>(64, width_ / 16)) {
  out.model.norm = "rms_zero_centered";
  read_attention(config);
  config.need(!with_mamba_ || period_ > 1, "mamba_step", "expected a number above 1");
  config.need(out.model.tie || tensors.rows("lm_head.weight", out.model.vocab) == out.model.vocab,
              "vocab_size", "expected as many as lm_head.weight has rows, a multiple of 16");
  config.need(!config.flag("use_predefined_initial_state", false), "use_predefined_initial_state",
              "expected false");
  config.need(config.text("linear_type", "normal") == "normal", "linear_type", "expected normal");
  for (const char* key : {"eval_attention_n_bit", "eval_mlp_n_bit", "image_token_id"})
    config.need(!config.has(key), key, "expected null");
}

// Layers in full_attention_idx rotate by rope_theta, those with a window by rope_local_theta. The makers' two programs
// differ in what they take for the latter where only the former is given.
void Plamo2::read_attention(const ConfigReader& config) {
  heads_ = config.integer("num_attention_heads", 32);
  kv_heads_ = config.integer("num_key_value_heads", 4);
  window_ = config.integer("attention_window_size", 2048);
  config.need(window_ > 0, "attention_window_size", "expected a number above 0");
  full_ = config.integers("full_attention_idx");
  theta_ = config.number("rope_theta", 10000);
  local_theta_ = config.number("rope_local_theta", 10000);
  bool slides = false;
  for (int64_t i = 0; i < layers_; ++i) slides = slides || !(is_mamba(i) || sees_all(i));
  config.need(!slides || theta_ == 10000 || config.has("rope_local_theta"), "rope_theta",
              "with layers that have a window it needs rope_local_theta beside it");
}

bool Plamo2::is_mamba(int64_t i) const {
  if (!with_mamba_) return false;
  const int64_t place = period_ / 2;
  return layers_ <= place ? i != layers_ - 1 : i % period_ != place;
}

Node Plamo2::mamba() const {
  return fields("mixer", "mamba2", "heads", mamba_heads_, "head_dim", head_dim_, "states", states_, "conv",
                conv_, "conv_bias", false, "dt_rank", rank_, "map_norm", "rms", "gate_norm", "none");
}

// Of a window of w tokens the published mask shows w before the own one.
Node Plamo2::attention(int64_t i) const {
  Node node = fields("mixer", "attention", "heads", heads_, "kv_heads", kv_heads_, "head_dim", head_dim_,
                     "qk_norm", true, "qk_norm_over", "each", "qk_norm_eps", kHeadNormEps);
  if (!sees_all(i)) node.set_child("window", node_of(window_ + 1));
  RopeSettings{.theta = sees_all(i) ? theta_ : local_theta_}.set(node);
  return node;
}

std::string Plamo2::add_branch(Node layer, double offset) {
  set_fields(layer, "norm", "rms_zero_centered", "norm_eps", eps_, "norm_placement", "sandwich",
             "post_norm_offset", offset);
  return out_.add_layer(std::move(layer));
}

void Plamo2::add_blocks() {
  for (int64_t i = 0; i < layers_; ++i) {
    const auto from = fmt::format("model.layers.layers.{}.", i);
    const auto mixer = add_branch(is_mamba(i) ? mamba() : attention(i), kMixerOffset);
    out_.take(mixer + "mixer_norm.weight", from + "pre_mixer_norm.weight");
    out_.take(mixer + "mixer_norm_post.weight", from + "post_mixer_norm.weight");
    if (is_mamba(i))
      take_mamba(mixer + "mixer.", from + "mixer.");
    else
      take_attention(mixer + "mixer.", from + "mixer.");

    const auto mlp = add_branch(fields("ffn", fields("swiglu", hidden_)), kMlpOffset);
    out_.take(mlp + "ffn_norm.weight", from + "pre_mlp_norm.weight");
    out_.take(mlp + "ffn_norm_post.weight", from + "post_mlp_norm.weight");
    take_fused_mlp(out_, mlp + "ffn.", from + "mlp.gate_up_proj.weight", from + "mlp.down_proj.weight",
                   hidden_, width_);
  }
}

// The rows of in_proj are z and u of one head after another.
void Plamo2::take_mamba(const std::string& to, const std::string& from) {
  const int64_t inner = mamba_heads_ * head_dim_;
  Piece in{.tensor = from + "in_proj.weight"};
  for (int64_t part = 0; part < 2; ++part)
    for (int64_t row = 0; row < inner; ++row)
      in.rows.push_back((2 * (row / head_dim_) + part) * head_dim_ + row % head_dim_);
  out_.take(to + "in.weight", in);
  out_.take(to + "conv.weight", Piece{.tensor = from + "conv1d.weight", .shape = {inner, 1, conv_}});
  for (const auto& [ours, theirs] : {std::pair{"x.weight", "bcdt_proj.weight"},
                                     {"dt.weight", "dt_proj.weight"},
                                     {"dt_bias", "dt_bias"},
                                     {"A_log", "A_log"},
                                     {"skip", "D"},
                                     {"dt_norm.weight", "dt_norm_weight"},
                                     {"b_norm.weight", "B_norm_weight"},
                                     {"c_norm.weight", "C_norm_weight"},
                                     {"out.weight", "out_proj.weight"}})
    out_.take(to + ours, from + theirs);
}

void Plamo2::take_attention(const std::string& to, const std::string& from) {
  const int64_t q = heads_ * head_dim_, kv = kv_heads_ * head_dim_;
  const auto take_rows = [&](const char* ours, int64_t begin, int64_t count) {
    out_.take(to + ours, Piece{.tensor = from + "qkv_proj.weight",
                               .shape = {q + 2 * kv, width_},
                               .rows = row_range(begin, begin + count)});
  };
  take_rows("q.weight", 0, q);
  take_rows("k.weight", q, kv);
  take_rows("v.weight", q + kv, kv);
  out_.take(to + "q_norm.weight", Piece{.tensor = from + "q_weight", .shape = {heads_, head_dim_}});
  out_.take(to + "k_norm.weight", Piece{.tensor = from + "k_weight", .shape = {kv_heads_, head_dim_}});
  take_linear(out_, to + "out", from + "o_proj");
}

void describe_plamo2(const ConfigReader& config, const TensorNames& tensors, Blueprint& out) {
  Plamo2(config, tensors, out).add_blocks();
}

// sliding_window repeats attention_window_size.
const RegisterArchitecture register_plamo2{{"plamo2",
                                            {"mamba_chunk_size", "sliding_window", "tokenizer_class",
                                             "fp8_accum_dtype", "image_feature_size", "image_proj_type"},
                                            describe_plamo2}};

}  // namespace
}  // namespace weft
