// Zamba (Glorioso et al. 2024, arXiv:2405.16712) and Zamba2 (Glorioso et al. 2024, arXiv:2411.15242): Mamba layers, some
// of which are given, beside the stream, what a transformer block makes of the stream and the token embeddings. The block
// has the same weights wherever it is used; Zamba2 has several in turn, with adapters of each use's own.
#include <algorithm>
#include <cmath>

#include "io/pretrained/architectures/mlp.h"
#include "io/pretrained/architectures/state_space.h"

namespace weft {
namespace {

// A block of attention and MLP and where it is used. Its result goes through a projection of the layer's own and is
// added to the input of that layer's mixer.
struct SharedBlock {
  AttentionShape attention;
  RopeSettings rope;
  double eps = 1e-5;
  int64_t hidden = 0, adapter_rank = 0;  // of the MLP
  std::string activation;
  bool bias = false;   // of the MLP
  bool fused = false;  // the MLP's gate and up are one tensor
  const char* module = "shared_transf";
  bool shared = true;  // one set of weights for all uses; else a full copy for each
  int64_t blocks = 1;  // sets of weights, used in turn

  Node layer(int64_t use) const {
    Node node = attention.mixer(rope);
    node.set_child("norm_eps", node_of(eps));
    Node mlp = fields("hidden", hidden, "activation", activation, "bias", bias);
    if (adapter_rank > 0) mlp.set_child("adapter_rank", node_of(adapter_rank));
    node.set_child("ffn", fields("mlp", mlp));
    node.set_child("concat", node_of("embedding"));
    node.set_child("skip_scale", node_of(0.0));
    node.set_child("to", node_of("block"));
    if (shared) node.set_child("share", node_of(fmt::format("block{}", use % blocks)));
    return node;
  }
};

void take_shared_block(Blueprint& out, const SharedBlock& block, const std::string& to,
                       const std::string& from, int64_t width) {
  out.take(to + "mixer_norm.weight", from + "input_layernorm.weight");
  out.take(to + "ffn_norm.weight", from + "pre_ff_layernorm.weight");
  block.attention.take(out, to + "mixer.", from + "self_attn.");
  const auto mlp = from + "feed_forward.";
  if (!block.fused) return take_mlp(out, to + "ffn.", mlp, block.bias);
  take_fused_mlp(out, to + "ffn.", mlp + "gate_up_proj.weight", mlp + "down_proj.weight", block.hidden,
                 width);
  if (!block.bias) return;
  const auto half = [&](int64_t begin) {
    return Piece{.tensor = mlp + "gate_up_proj.bias",
                 .shape = {2 * block.hidden},
                 .rows = row_range(begin, begin + block.hidden)};
  };
  out.take(to + "ffn.gate.bias", half(0));
  out.take(to + "ffn.up.bias", half(block.hidden));
  out.take(to + "ffn.down.bias", mlp + "down_proj.bias");
}

// The adapters of the use-th user of blocks, which stand in the block that it uses.
void take_block_adapters(Blueprint& out, const SharedBlock& block, const std::string& to,
                         const std::string& from, int64_t use) {
  if (block.attention.adapter_rank > 0)
    for (const char* name : {"q", "k", "v"}) {
      const auto list = fmt::format("{}self_attn.linear_{}_adapter_list.{}.", from, name, use);
      out.take(to + "mixer." + name + ".adapter_down.weight", list + "0.weight");
      out.take(to + "mixer." + name + ".adapter_up.weight", list + "1.weight");
    }
  if (block.adapter_rank == 0) return;
  const auto list = fmt::format("{}feed_forward.gate_up_proj_adapter_list.{}.", from, use);
  const auto half = [&](int64_t begin) {
    return Piece{.tensor = list + "1.weight",
                 .shape = {2 * block.hidden, block.adapter_rank},
                 .rows = row_range(begin, begin + block.hidden)};
  };
  out.take(to + "ffn.adapter_down.weight", list + "0.weight");
  out.take(to + "ffn.gate_adapter_up.weight", half(0));
  out.take(to + "ffn.up_adapter_up.weight", half(block.hidden));
}

// Full copies of a block hold the adapters of all the uses that would share it.
void pass_over_adapters(Blueprint& out, const SharedBlock& block, const std::string& from, int64_t use,
                        int64_t uses) {
  for (int64_t other = use % block.blocks; other < uses; other += block.blocks) {
    if (other == use) continue;
    out.pass_over(fmt::format("{}feed_forward.gate_up_proj_adapter_list.{}.", from, other));
    for (const char* name : {"q", "k", "v"})
      out.pass_over(fmt::format("{}self_attn.linear_{}_adapter_list.{}.", from, name, other));
  }
}

// The layers; `take` says where the parameters of a Mamba mixer are.
void add_hybrid_layers(Blueprint& out, const std::vector<std::string>& types, const SharedBlock& block,
                       const Node& mamba,
                       const std::function<void(const std::string& to, const std::string& from)>& take) {
  std::vector<std::string> owners;  // the prefix of each set of weights
  const int64_t uses = std::count(types.begin(), types.end(), "hybrid");
  int64_t use = 0;
  for (size_t i = 0; i < types.size(); ++i) {
    const auto from = fmt::format("model.layers.{}.", i);
    const bool hybrid = types[i] == "hybrid";
    Node layer = mamba;
    layer.set_child("norm_eps", node_of(block.eps));
    if (hybrid) {
      const auto to = out.add_layer(block.layer(use));
      const auto own = from + block.module + ".";
      const bool first = !block.shared || use < block.blocks;
      if (first) {
        owners.push_back(own);
        take_shared_block(out, block, to, own, out.model.width);
      }
      if (!block.shared) pass_over_adapters(out, block, own, use, uses);
      take_block_adapters(out, block, to,
                          block.shared ? owners[static_cast<size_t>(use % block.blocks)] : own, use);
      const auto linear = out.add_layer(fields("ffn", fields("linear", Node::map()), "norm", "none",
                                               "skip_scale", 0.0, "from", "block", "to", "block"));
      out.take(linear + "ffn.map.weight", from + "linear.weight");
      layer.set_child("add", node_of("block"));
      ++use;
    }
    const auto to = out.add_layer(std::move(layer));
    const auto inner = hybrid ? from + "mamba_decoder." : from;
    out.take(to + "mixer_norm.weight", inner + "input_layernorm.weight");
    take(to + "mixer.", inner + "mamba.");
  }
}

// Attention over stream and embedding side by side, of which a head's scores count as of half its width.
AttentionShape read_wide_attention(const ConfigReader& config, int64_t width, int64_t heads,
                                   int64_t kv_heads) {
  AttentionShape shape;
  shape.heads = config.integer("num_attention_heads", heads);
  shape.kv_heads =
      read_nullable(config, "num_key_value_heads", kv_heads > 0 ? kv_heads : shape.heads, shape.heads);
  shape.head_dim =
      config.integer({"attention_head_dim", "head_dim"}, 2 * width / std::max<int64_t>(shape.heads, 1));
  shape.scale = 1 / std::sqrt(static_cast<double>(shape.head_dim) / 2);
  const auto joined = config.integer("attention_hidden_size", 2 * width);
  config.need(joined == 2 * width, "attention_hidden_size",
              fmt::format("expected twice the hidden_size: {}", 2 * width));
  return shape;
}

void describe_zamba(const ConfigReader& config, const TensorNames& tensors, Blueprint& out) {
  SharedBlock block;
  block.eps = config.number("rms_norm_eps", 1e-5);
  const auto width = describe_frame(config, tensors, out, {"model.embed_tokens.weight"},
                                    "model.final_layernorm.weight", block.eps, true);
  block.attention = read_wide_attention(config, width, 16, 16);
  block.hidden = config.integer("intermediate_size", 14848);
  block.activation = read_activation(config, "hidden_act", "gelu");
  block.shared = config.flag("tie_word_embeddings", true);

  MambaShape mamba;
  mamba.zamba = true;
  mamba.inner = config.integer("mamba_expand", 2) * width;
  mamba.heads = config.integer("n_mamba_heads", 2);
  mamba.states = config.integer("mamba_d_state", 16);
  mamba.conv = config.integer("mamba_d_conv", 4);
  mamba.rank = read_auto(config, "mamba_dt_rank", (width + 15) / 16);
  mamba.bias = config.flag("mamba_proj_bias", false);
  mamba.conv_bias = config.flag("mamba_conv_bias", true);
  mamba.activation = read_activation(config, "hidden_mamba_act", "silu");

  const auto layers = config.integer("num_hidden_layers", 76);
  const auto period = config.integer("attn_layer_period", 6), offset = config.integer("attn_layer_offset", 4);
  auto types = read_layer_types(config, {"layers_block_type", "layer_types"});
  if (types.empty()) {
    types = {"linear_attention", "linear_attention", "hybrid"};
    for (int64_t i = 0; i < layers - 3; ++i)
      types.push_back(i % period == offset ? "hybrid" : "linear_attention");
  }
  add_hybrid_layers(out, types, block, mamba.mixer(),
                    [&](const auto& to, const auto& from) { mamba.take(out, to, from); });
}

std::vector<std::string> default_zamba2_types() {
  std::vector<std::string> types;
  const auto add = [&](int64_t plain, bool hybrid) {
    types.insert(types.end(), static_cast<size_t>(plain), "linear_attention");
    if (hybrid) types.push_back("hybrid");
  };
  add(1, false);
  for (int i = 0; i < 7; ++i) add(5, true);
  add(4, true);
  add(3, true);
  add(2, false);
  return types;
}

void describe_zamba2(const ConfigReader& config, const TensorNames& tensors, Blueprint& out) {
  SharedBlock block;
  block.eps = config.number("rms_norm_eps", 1e-5);
  const auto width = describe_frame(config, tensors, out, {"model.embed_tokens.weight"},
                                    "model.final_layernorm.weight", block.eps, true);
  block.module = "shared_transformer";
  block.fused = true;
  block.shared = config.flag("tie_word_embeddings", true);
  block.blocks = config.integer("num_mem_blocks", 1);
  block.bias = config.flag("add_bias_linear", false);
  block.attention = read_wide_attention(config, width, 32, 0);
  block.hidden = config.integer("intermediate_size", 4 * width);
  block.activation = read_activation(config, "hidden_act", "gelu");
  block.adapter_rank = config.integer("adapter_rank", 128);
  if (config.flag("use_shared_attention_adapter", false)) block.attention.adapter_rank = block.adapter_rank;
  const bool rope = config.flag("use_mem_rope", false), long_context = config.flag("use_long_context", false);
  const auto settings = read_rope(config, block.attention.head_dim, {.positions = 4096});
  config.need(!rope || !long_context || settings.scaling.is_null(), "use_long_context",
              "expected false where rope_parameters scale the positions");
  if (rope) block.rope = settings;

  Mamba2Shape mamba;
  mamba.heads = config.integer("n_mamba_heads", 8);
  const auto inner = static_cast<int64_t>(config.number("mamba_expand", 2) * static_cast<double>(width));
  mamba.head_dim = inner / std::max<int64_t>(mamba.heads, 1);
  config.need(mamba.heads * mamba.head_dim == inner, "n_mamba_heads",
              fmt::format("expected a divisor of {}", inner));
  mamba.states = config.integer("mamba_d_state", 64);
  mamba.groups = config.integer("mamba_ngroups", 1);
  mamba.conv = config.integer("mamba_d_conv", 4);
  mamba.bias = mamba.output_bias = block.bias;
  mamba.dt_min = config.number("time_step_min", 0.001);

  auto types = read_layer_types(config, {"layers_block_type", "layer_types"});
  if (types.empty()) types = default_zamba2_types();
  add_hybrid_layers(out, types, block, mamba.mixer(),
                    [&](const auto& to, const auto& from) { mamba.take(out, to, from); });
}

// Initialisation, choice of kernels, and sizes that follow from others.
const std::vector<std::string> kZambaIrrelevant{
    "num_logits_to_keep", "use_mamba_kernels", "use_associative_scan", "time_step_min",
    "time_step_max",      "time_step_floor",   "chunk_size",           "use_mem_eff_path",
    "hybrid_layer_ids",   "kv_channels",       "num_query_groups",     "mamba_headdim",
    "use_conv_bias",      "num_hidden_layers", "time_step_limit",      "rope_theta",
    "ffn_hidden_size",    "lora_rank",         "vocab_file",           "tie_projection_weight"};

const RegisterArchitecture register_zamba{{"zamba", kZambaIrrelevant, describe_zamba}};
const RegisterArchitecture register_zamba2{{"zamba2", kZambaIrrelevant, describe_zamba2}};

}  // namespace
}  // namespace weft
