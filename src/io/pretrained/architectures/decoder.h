// What the transformers have in common that are blocks of attention and a gated MLP under model.layers.N: sizes, the
// frame around the blocks, the tensors' names.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "io/pretrained/architecture.h"
#include "io/pretrained/architectures/rope_config.h"

namespace weft {

// How an architecture differs from Llama; defaults of config keys as its configuration class has them.
struct DecoderTraits {
  bool qkv_bias = false, output_bias = false, mlp_bias = false;
  bool qk_norm = false;
  const char* qk_norm_over = "head";   // or "all", as the option of the attention mixer
  const char* norm = "rms";            // as the option of layers; norms of q and k too
  const char* norm_placement = "pre";  // or "branch", "sandwich"
  bool fused = false;               // qkv_proj and gate_up_proj hold several projections, one after another
  bool tied = false;                // tie_word_embeddings
  double eps = 1e-6;                // rms_norm_eps
  std::optional<int64_t> kv_heads;  // num_key_value_heads; none: num_attention_heads
  std::optional<int64_t> head_dim;  // none: hidden_size / num_attention_heads
  ConfigKey activation_key = "hidden_act";
  const char* activation = "silu";
};

// A channel mixer in place of the MLP: its node, and what takes its tensors, given the prefixes of the layer's
// parameters ("stack.layers.3.") and tensors ("model.layers.3.").
struct FeedForward {
  Node node;
  std::function<void(const std::string& to, const std::string& from)> take;
};

class Decoder {
 public:
  // Reads sizes, norms and activation, and describes all around the blocks.
  Decoder(const ConfigReader& config, const TensorNames& tensors, const DecoderTraits& traits,
          Blueprint& out);

  int64_t layers() const { return layers_; }
  int64_t head_dim() const { return head_dim_; }
  int64_t width() const { return width_; }
  int64_t hidden() const { return hidden_; }
  const std::string& activation() const { return activation_; }
  // Adds the next block. `own` are options of this layer's attention beside those of all layers.
  void add_block(const RopeSettings& rope, int64_t window, const Node& own = Node::map(),
                 const FeedForward* ffn = nullptr);

 private:
  void take_attention(const std::string& to, const std::string& from);
  void take_norms(const std::string& to, const std::string& from);

  Blueprint& out_;
  DecoderTraits traits_;
  int64_t layers_, width_, heads_, kv_heads_, head_dim_, hidden_, positions_;
  double eps_;
  std::string activation_;
};

// For each layer, how many tokens its attention sees: sliding_window where layer_types says sliding_attention, 0 (all)
// elsewhere. Without layer_types, `slides` says which layers slide.
std::vector<int64_t> read_windows(const ConfigReader& config, int64_t layers, int64_t window,
                                  const std::function<bool(int64_t)>& slides);

// sliding_window: `absent` when the key is not there, 0 (all tokens) when it is null.
int64_t read_window(const ConfigReader& config, int64_t absent);

}  // namespace weft
