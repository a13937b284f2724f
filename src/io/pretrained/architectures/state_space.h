// What the architectures of the Mamba families share: the frame around the layers, the two mixers and plain attention,
// as options of weft and as tensors of the file.
#pragma once

#include <limits>
#include <string>
#include <vector>

#include "io/pretrained/architecture.h"
#include "io/pretrained/architectures/rope_config.h"

namespace weft {

// Embedding, final norm and head; `tied` is the default of tie_word_embeddings. Sets the model's sizes; returns its
// width.
int64_t describe_frame(const ConfigReader& config, const TensorNames& tensors, Blueprint& out,
                       const std::vector<std::string>& embedding, const std::string& norm, double eps,
                       bool tied);

// An integer, or "auto" (as when the key is absent), which means `otherwise`.
int64_t read_auto(const ConfigReader& config, const ConfigKey& key, int64_t otherwise);
// An integer; `absent` when the key is not there, `null` when it is null.
int64_t read_nullable(const ConfigReader& config, const char* key, int64_t absent, int64_t null);
// The types of layers in today's names: linear_attention (formerly mamba), full_attention (formerly attention), and
// others as they are. {} when absent.
std::vector<std::string> read_layer_types(const ConfigReader& config, const ConfigKey& key);

// A Mamba-1 mixer.
struct MambaShape {
  int64_t inner = 0, states = 16, conv = 4, rank = 0, heads = 1;
  bool bias = false, conv_bias = true;
  std::string activation = "silu", map_norm = "none";
  double map_norm_eps = 0;
  bool zamba = false;  // the tensors are by head, and rows of in_proj alternate between x and z

  Node mixer() const;
  // The parameters `to` ("stack.layers.3.mixer.") from the tensors `from` ("model.layers.3.mamba.").
  void take(Blueprint& out, const std::string& to, const std::string& from) const;
};

// A Mamba-2 mixer.
struct Mamba2Shape {
  int64_t heads = 0, head_dim = 0, states = 0, groups = 1, conv = 4;
  bool bias = false, output_bias = false, conv_bias = true;
  std::string activation = "silu", gate_norm = "after";
  double gate_norm_eps = 1e-5;
  double dt_min = 0, dt_max = std::numeric_limits<double>::infinity();
  std::vector<double> scales = {};

  // time_step_limit: [least, largest].
  void read_limits(const ConfigReader& config);
  Node mixer() const;
  void take(Blueprint& out, const std::string& to, const std::string& from) const;
};

// The keys that Bamba, Falcon-H1 and Granite have in common: mamba_n_heads, mamba_d_head, ... `inner` is the width that
// heads of "auto" width share.
Mamba2Shape read_mamba2(const ConfigReader& config, int64_t inner, double eps);

// Attention with q_proj, k_proj, v_proj and o_proj.
struct AttentionShape {
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
  bool bias = false, output_bias = false;
  double scale = 0;
  int64_t adapter_rank = 0;

  Node mixer(const RopeSettings& rope = {}) const;
  void take(Blueprint& out, const std::string& to, const std::string& from) const;
};
// num_attention_heads, num_key_value_heads (`kv_heads` when absent; 0: as many as heads), head_dim; no biases.
AttentionShape read_attention(const ConfigReader& config, int64_t width, int64_t kv_heads);

}  // namespace weft
