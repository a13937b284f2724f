// What Qwen3-Next, Qwen3.5 and Lara share: Gated DeltaNet layers and now and then an attention layer, norms before the
// branches.
#pragma once

#include "io/pretrained/architectures/delta_config.h"
#include "io/pretrained/architectures/moe.h"
#include "io/pretrained/architectures/rope_config.h"

namespace weft {

struct QwenHybrid {
  // How the file lays out what the linear layers project.
  enum class Rows { grouped, separate, joined };
  DeltaConfig delta;
  int64_t heads = 16, kv_heads = 2, head_dim = 256;  // of attention
  double eps = 1e-6;
  bool bias = false;                       // of attention
  bool gated = true;                       // attention has a sigmoid gate, its rows beside those of q
  const char* norm = "rms_zero_centered";  // of the stream and of q and k
  Rows rows = Rows::grouped;
  std::string prefix = "model.";  // of the tensors of the text model
};

// The sizes; `defaults` has what the config leaves out.
QwenHybrid read_qwen_hybrid(const ConfigReader& config, QwenHybrid defaults);

// Embedding, final norm and head.
void take_qwen_frame(const ConfigReader& config, const TensorNames& tensors, Blueprint& out,
                     const QwenHybrid& q, int64_t vocab, bool tied);

// A layer without the parameters of its channel mixer, which `ffn` describes; returns its prefix. `attention`: options
// of its attention beside those of all; {}: a linear layer.
std::string add_qwen_layer(Blueprint& out, const QwenHybrid& q, const std::optional<Node>& attention,
                           const Node& ffn, const std::string& from);

// The parameters of its mixers alone: of attention from `from` ("model.layers.3.self_attn."), of a linear layer.
void take_qwen_attention(Blueprint& out, const std::string& mixer, const std::string& from,
                         const QwenHybrid& q);
void take_qwen_delta(Blueprint& out, const std::string& mixer, const std::string& from, const QwenHybrid& q);

// Experts, and an MLP that all tokens share.
struct QwenExperts {
  Node node;  // the channel mixer
  ExpertSizes sizes{};
  bool shared_gate = false;  // the shared MLP is multiplied by a sigmoid of one number
};
// `normalise`: the weights of the chosen experts add up to 1. `experts` and `top_k` where the config is silent.
QwenExperts read_qwen_experts(const ConfigReader& config, const DeltaConfig& delta, bool normalise,
                              bool shared_gate, int64_t experts, int64_t top_k);
void take_qwen_experts(Blueprint& out, const TensorNames& tensors, const QwenExperts& experts,
                       const std::string& ffn, const std::string& from);

}  // namespace weft
