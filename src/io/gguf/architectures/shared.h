// What the GGUF architectures have in common.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"
#include "io/gguf/architecture.h"

namespace weft::gguf {

// vocab_size (from the embedding's rows), hidden_size, num_hidden_layers, rms_norm_eps, tie_word_embeddings and the
// token ids that mark begin, end and padding.
void read_common(const GgufFile& file, const std::string& model_type, const std::string& class_name,
                 nlohmann::json& config);
// num_attention_heads, num_key_value_heads (of `kv_heads` the only value that is not 0), head_dim.
void read_heads(const GgufMetadata& metadata, nlohmann::json& config);
// rope_parameters: base, linear and YaRN scaling, and the frequency factors of rope_freqs.weight.
void read_rope(const GgufFile& file, nlohmann::json& config, double base = 10000.0);
// block_count, embedding_length, context_length, vocab_size, layer_norm_rms_epsilon.
void write_common(const ConfigReader& config, GgufMetadata& metadata);
void write_heads(const ConfigReader& config, GgufMetadata& metadata);
void write_rope(const ConfigReader& config, GgufMetadata& metadata, double base = 10000.0);

int64_t head_dim_of(const ConfigReader& config);
// Per head, the rows in which llama.cpp keeps the halves of a rotated pair side by side: row p * d/2 + j of the
// checkpoint is row 2 j + p of the GGUF file.
std::vector<int64_t> paired_rows(int64_t heads, int64_t head_dim);

// token_embd, output_norm, output (when the model has a head of its own).
void name_ends(GgufNames& names, const std::string& embedding = "model.embed_tokens.weight",
               const std::string& norm = "model.norm.weight",
               GgufLink::Value norm_value = GgufLink::Value::same);
// q, k, v, o with biases where they are; q and k in the order of paired_rows when `paired`.
void name_attention(const ConfigReader& config, GgufNames& names, const std::string& tensor,
                    const std::string& gguf, bool paired);
// ffn_gate, ffn_up, ffn_down.
void name_gated_mlp(GgufNames& names, const std::string& gguf, const std::string& gate, const std::string& up,
                    const std::string& down);
// One expert of `experts`: rows of the stack `gguf` [E, out, in].
void name_expert(GgufNames& names, const std::string& tensor, const std::string& gguf, int64_t expert,
                 int64_t experts, int64_t out, int64_t in);
// A Mamba-1 mixer: `tensor` is its prefix ("backbone.layers.0.mixer."), `inner` its width, `kernel` that of the
// convolution.
void name_mamba(GgufNames& names, const std::string& tensor, const std::string& gguf, int64_t inner,
                int64_t kernel);
struct Mamba2Sizes {
  int64_t heads, inner, groups, state, kernel;
};
void name_mamba2(GgufNames& names, const std::string& tensor, const std::string& gguf,
                 const Mamba2Sizes& sizes);
// The same without in_proj and out_proj.
void name_mamba2_inside(GgufNames& names, const std::string& tensor, const std::string& gguf,
                        const Mamba2Sizes& sizes);
// Sizes from `ssm.*`: the reverse of write_mamba2.
Mamba2Sizes read_mamba2(const GgufMetadata& metadata);
void write_mamba2(const Mamba2Sizes& sizes, GgufMetadata& metadata);
// A depthwise convolution [channels, 1, kernel], in the file [channels, kernel].
GgufLink conv_link(const std::string& tensor, const std::string& gguf, int64_t channels, int64_t kernel);
// begin, begin + step, ... are exactly the places of `wanted` in a list of this size; InputError, naming `where`, when
// they follow no such pattern.
struct EveryNth {
  int64_t begin, step;
};
EveryNth every_nth(const std::vector<bool>& wanted, const std::string& where);
// rope_freqs.weight of a config with llama3 scaling.
void name_rope_factors(const ConfigReader& config, GgufNames& names);
inline std::string block(int64_t i) { return fmt::format("blk.{}.", i); }
inline std::string layer(int64_t i) { return fmt::format("model.layers.{}.", i); }

}  // namespace weft::gguf
