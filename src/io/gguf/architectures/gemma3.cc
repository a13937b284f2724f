// "gemma3": the text model. Norms are kept with the 1 added that the checkpoint leaves out.
#include "io/gguf/architectures/shared.h"

namespace weft::gguf {
namespace {

constexpr int64_t kPattern = 6;  // every sixth layer sees all tokens, unless the file says otherwise

std::vector<bool> sliding_layers(const GgufMetadata& metadata, int64_t layers) {
  std::vector<bool> sliding;
  const auto* given = metadata.find(".attention.sliding_window_pattern");
  const bool list = given && given->kind == GgufKind::array;
  const auto flags =
      list ? metadata.per_layer(".attention.sliding_window_pattern", layers) : std::vector<int64_t>();
  const auto period = given && !list ? metadata.integer(".attention.sliding_window_pattern") : kPattern;
  const bool any = metadata.integer(".attention.sliding_window", 0) > 0;
  for (int64_t i = 0; i < layers; ++i)
    sliding.push_back(list ? flags[static_cast<size_t>(i)] != 0 : any && period > 0 && (i + 1) % period != 0);
  return sliding;
}

// The softmax scale is one over the root of the head's width; of width / heads in the model of 62 layers, 27B, as
// llama.cpp has it, since the file does not say.
int64_t query_scalar(const nlohmann::json& config) {
  const auto heads = config["num_attention_heads"].get<int64_t>();
  return config["num_hidden_layers"] == 62 ? config["hidden_size"].get<int64_t>() / heads
                                           : config["head_dim"].get<int64_t>();
}

void read_gemma3(const GgufFile& file, nlohmann::json& config) {
  const auto& metadata = file.metadata();
  read_common(file, "gemma3_text", "Gemma3ForCausalLM", config);
  read_heads(metadata, config);
  read_rope(file, config, 1e6);
  auto layer_types = nlohmann::json::array();
  for (const bool sliding : sliding_layers(metadata, config["num_hidden_layers"]))
    layer_types.push_back(sliding ? "sliding_attention" : "full_attention");
  config["layer_types"] = layer_types;
  config["rope_parameters"] = {
      {"full_attention", config["rope_parameters"]},
      {"sliding_attention",
       {{"rope_type", "default"}, {"rope_theta", metadata.number(".rope.freq_base_swa", 1e4)}}}};
  config["intermediate_size"] = metadata.integer(".feed_forward_length");
  config["hidden_activation"] = "gelu_pytorch_tanh";
  config["query_pre_attn_scalar"] = query_scalar(config);
  if (metadata.has(".attention.sliding_window"))
    config["sliding_window"] = metadata.integer(".attention.sliding_window");
  if (metadata.has(".final_logit_softcapping"))
    config["final_logit_softcapping"] = metadata.number(".final_logit_softcapping");
}

void write_gemma3(const ConfigReader& config, GgufMetadata& metadata) {
  write_common(config, metadata);
  write_heads(config, metadata);
  metadata.set_u32(".feed_forward_length", config.integer("intermediate_size"));
  metadata.set_u32(".attention.sliding_window", config.integer("sliding_window", 4096));
  const auto layers = config.integer("num_hidden_layers");
  const auto scalar = config.integer("query_pre_attn_scalar", 256);
  const auto expected = layers == 62 ? config.integer("hidden_size") / config.integer("num_attention_heads")
                                     : config.integer("head_dim", 256);
  config.need(scalar == expected, "query_pre_attn_scalar",
              fmt::format("GGUF does not record it: expected {}", expected));
  const auto types = config.texts("layer_types");
  std::vector<int64_t> sliding;
  for (int64_t i = 0; i < layers; ++i)
    sliding.push_back(types.empty() ? (i + 1) % config.integer("sliding_window_pattern", kPattern) != 0
                                    : types[static_cast<size_t>(i)] == "sliding_attention");
  metadata.set(".attention.sliding_window_pattern",
               {.kind = GgufKind::array, .element = GgufKind::boolean, .value = sliding});
  double global = config.number("rope_theta", 1e6), local = config.number("rope_local_base_freq", 1e4);
  if (const auto rope = config.child("rope_parameters")) {
    if (const auto full = rope->child("full_attention")) {
      full->need(full->text("rope_type", "default") == "default" || full->text("rope_type") == "linear",
                 "rope_type", "expected default or linear");
      global = full->number("rope_theta", global);
      if (full->text("rope_type", "default") == "linear") {
        metadata.set_text(".rope.scaling.type", "linear");
        metadata.set_f32(".rope.scaling.factor", full->number("factor"));
      }
    }
    if (const auto part = rope->child("sliding_attention")) local = part->number("rope_theta", local);
  }
  metadata.set_f32(".rope.freq_base", global);
  metadata.set_f32(".rope.freq_base_swa", local);
  if (config.has("final_logit_softcapping"))
    metadata.set_f32(".final_logit_softcapping", config.number("final_logit_softcapping"));
}

void name_gemma3(const ConfigReader& config, GgufNames& names) {
  name_ends(names, "model.embed_tokens.weight", "model.norm.weight", GgufLink::Value::plus);
  for (int64_t i = 0; i < config.integer("num_hidden_layers"); ++i) {
    const auto from = layer(i), to = block(i);
    for (const auto& [ours, theirs] : {std::pair{"input_layernorm", "attn_norm"},
                                       {"post_attention_layernorm", "post_attention_norm"},
                                       {"pre_feedforward_layernorm", "ffn_norm"},
                                       {"post_feedforward_layernorm", "post_ffw_norm"},
                                       {"self_attn.q_norm", "attn_q_norm"},
                                       {"self_attn.k_norm", "attn_k_norm"}})
      names.link({.tensor = fmt::format("{}{}.weight", from, ours),
                  .pieces = {{fmt::format("{}{}.weight", to, theirs)}},
                  .value = GgufLink::Value::plus});
    name_attention(config, names, from + "self_attn.", to, false);
    name_gated_mlp(names, to, from + "mlp.gate_proj", from + "mlp.up_proj", from + "mlp.down_proj");
  }
}

const RegisterGgufArchitecture register_gguf_gemma3{
    {"gemma3", {"gemma3_text"}, read_gemma3, write_gemma3, name_gemma3}};

}  // namespace
}  // namespace weft::gguf
