// The text model of Qwen4-Exp: Gated DeltaNet layers, every few attention to blocks of keys that an indexer chooses, experts,
// several residual streams, n-gram memories on some layers. Qwen team 2026.
#include <algorithm>
#include <cmath>

#include "io/pretrained/architectures/qwen_hybrid.h"
#include "nn/mixers/ngram_hash.h"

namespace weft {
namespace {

struct Qwen4 {
  QwenHybrid sizes;
  RopeSettings rope;
  std::string gate;  // activation of the linear layers' gate
  int64_t streams, rank, index_heads = 0, index_dim = 0, budget = 0, block = 0;
  std::vector<int64_t> memories;  // layers with a memory, from 1
  int64_t memory_dim, memory_conv, boundary = 0, shards;
  NgramOptions ngram;
};

void read_memories(const ConfigReader& config, int64_t vocab, Qwen4& m) {
  m.memories = config.integers("ple_layer_ids");
  std::sort(m.memories.begin(), m.memories.end());
  m.memories.erase(std::unique(m.memories.begin(), m.memories.end()), m.memories.end());
  m.memory_dim = config.integer("ple_embed_dim", m.sizes.delta.width);
  m.memory_conv = config.integer("ple_conv_kernel_size", 4);
  m.shards = config.integer("split_ngram_parts", 512);
  m.ngram = {.vocab = vocab,
             .longest = config.integer("ngram_size", 3),
             .heads = config.integer("heads_per_ngram", 8),
             .base = config.integer("ngram_vocab_size_base", 20000000),
             .multiple = config.integer("make_ngram_vocab_size_divisible_by", 128),
             .seed = config.integer("seed", 1234)};
  const auto ends = config.integers("eos_token_id");
  config.need(m.memories.empty() || !ends.empty(), "eos_token_id", "expected a token beside ple_layer_ids");
  if (!ends.empty()) m.boundary = ends.front();
}

Qwen4 read_qwen4(const ConfigReader& config) {
  Qwen4 m{};
  m.sizes = read_qwen_hybrid(
      config, {.delta = {.width = 2048, .heads = 16, .head_dim = 128, .value_heads = 32, .value_dim = 128},
               .rows = QwenHybrid::Rows::separate});
  m.rope = read_rope(config, m.sizes.head_dim, {.partial = 1.0, .positions = 32768});
  m.gate = config.text("output_gate_type", m.sizes.delta.activation);
  config.need(m.gate == "silu" || m.gate == "sigmoid", "output_gate_type", "expected silu or sigmoid");
  m.streams = config.integer("hc_count", 4);
  m.rank = config.integer("hc_lowrank", 320);
  m.index_heads = config.integer("indexer_n_heads", 0);
  m.index_dim = config.integer("indexer_head_dim", 0);
  m.budget = config.integer("indexer_budget", 0);
  m.block = config.integer("indexer_compress_ratio", 0);
  config.need(config.integer("indexer_kv_heads", 1) == 1, "indexer_kv_heads", "expected 1");
  read_memories(config, config.integer("vocab_size", 248320), m);
  return m;
}

// How a branch, or the end of the stack, reads the streams.
void take_mix(Blueprint& out, const std::string& to, const std::string& from) {
  take_linear(out, to + "mix.norm", from + "hc_norm");
  take_linear(out, to + "mix.down", from + "input_mix_weight_down");
  take_linear(out, to + "mix.up", from + "input_mix_weight_up");
}

void take_table(Blueprint& out, const TensorNames& tensors, const Qwen4& m, const NgramHash& hash,
                const std::string& to, const std::string& from) {
  if (tensors.has(from + "weight", false)) return out.take(to, from + "weight");
  const auto width = m.memory_dim / static_cast<int64_t>(hash.sizes.size());
  const int64_t most = (hash.rows + m.shards - 1) / m.shards;
  std::vector<Piece> pieces;
  for (int64_t begin = 0; begin < hash.rows; begin += most)
    pieces.push_back({.tensor = fmt::format("{}shard_{}.weight", from, pieces.size()),
                      .shape = {std::min(most, hash.rows - begin), width}});
  out.take(to, std::move(pieces));
}

void add_memory(Blueprint& out, const TensorNames& tensors, const Qwen4& m, int64_t index,
                const std::string& from) {
  auto ngram = m.ngram;
  ngram.index = index;
  const auto hash = ngram_hash(ngram);
  const auto to =
      out.add_layer(fields("mixer", "ngram_memory", "streams", m.streams, "dim", m.memory_dim, "conv",
                           m.memory_conv, "boundary", m.boundary, "vocab", ngram.vocab, "ngram",
                           ngram.longest, "heads", ngram.heads, "base", ngram.base, "multiple",
                           ngram.multiple, "seed", ngram.seed, "index", index, "whole_stream", true, "norm",
                           "none", "norm_eps", m.sizes.eps, "import", fields("tokens", "tokens"))) +
      "mixer.";
  const auto own = from + "ple.", table = own + "ple_embedding.";
  take_table(out, tensors, m, hash, to + "table.weight", table + "ngram_embedding.");
  take_linear(out, to + "k", own + "key_proj");
  take_linear(out, to + "v", own + "value_proj");
  for (const auto& [ours, theirs] :
       {std::pair{"k_norm", "norm_key"}, {"q_norm", "norm_query"}, {"conv_norm", "norm_conv"}})
    take_linear(out, to + ours, own + theirs);
  out.take(to + "conv.weight", Piece{.tensor = own + "conv1d.weight",
                                     .shape = {m.streams * m.sizes.delta.width, 1, m.memory_conv}});
  out.constant(table + "layer_multipliers", at::tensor(hash.multipliers));
  out.constant(table + "ngram_heads_vocab_sizes", at::tensor(hash.sizes));
  out.constant(table + "ngram_heads_offsets", at::tensor(hash.offsets));
}

Node indexed_layer(const Qwen4& m) {
  const auto& q = m.sizes;
  auto layer = fields("mixer", "indexed_attention", "heads", q.heads, "kv_heads", q.kv_heads, "head_dim",
                      q.head_dim, "index_heads", m.index_heads, "index_dim", m.index_dim, "budget", m.budget,
                      "block", m.block, "zero_centered", true, "bias", q.bias);
  m.rope.set(layer);
  return layer;
}

void take_indexed(Blueprint& out, const Qwen4& m, const std::string& to, const std::string& from) {
  take_qwen_attention(out, to, from, m.sizes);
  const auto tensor = from + "indexer.index_qk_proj.weight";
  const int64_t queries = m.index_heads * m.index_dim, all = queries + m.index_dim;
  for (const auto& [ours, begin, end] :
       {std::tuple{"index_q", int64_t{0}, queries}, {"index_k", queries, all}})
    out.take(fmt::format("{}{}.weight", to, ours),
             Piece{.tensor = tensor, .shape = {all, m.sizes.delta.width}, .rows = row_range(begin, end)});
  take_linear(out, to + "index_q_norm", from + "indexer.q_layernorm");
  take_linear(out, to + "index_k_norm", from + "indexer.k_layernorm");
}

void add_qwen4_layer(Blueprint& out, const TensorNames& tensors, const Qwen4& m, const QwenExperts& experts,
                     bool indexed, const std::string& from) {
  auto layer = indexed ? indexed_layer(m) : delta_mixer(m.sizes.delta);
  if (!indexed) set_fields(layer, "gate_activation", m.gate);
  set_fields(layer, "norm", "none", "norm_eps", m.sizes.eps, "ffn", experts.node);
  const auto to = out.add_layer(std::move(layer));
  if (indexed)
    take_indexed(out, m, to + "mixer.", from + "self_attn.");
  else
    take_qwen_delta(out, to + "mixer.", from + "linear_attn.", m.sizes);
  take_qwen_experts(out, tensors, experts, to + "ffn.", from + "mlp.");
  for (const auto& [ours, theirs] : {std::pair{"mixer", "attn"}, {"ffn", "mlp"}}) {
    const auto own = fmt::format("{}{}_residual.", to, ours),
               theirs_from = fmt::format("{}{}_hyper_connection.", from, theirs);
    take_mix(out, own, theirs_from);
    take_linear(out, own + "inject", theirs_from + "block_inject_weight");
  }
}

void describe_qwen4(const ConfigReader& config, const TensorNames& tensors, Blueprint& out) {
  const auto m = read_qwen4(config);
  const auto experts =
      read_qwen_experts(config, m.sizes.delta, config.flag("norm_topk_prob", true), true, 512, 10);
  out.model.vocab = m.ngram.vocab;
  out.model.width = m.sizes.delta.width;
  out.model.norm = "none";
  out.model.norm_eps = m.sizes.eps;
  out.model.residual =
      fields("hyper_connections", fields("streams", m.streams, "rank", m.rank, "eps", m.sizes.eps));
  out.model.tie = !tensors.has("lm_head.weight", !config.flag("tie_word_embeddings", false));
  out.take("embedding.weight", "model.embed_tokens.weight");
  if (!out.model.tie) out.take("head.weight", "lm_head.weight");
  take_mix(out, "stack.residual.", "model.hyper_connection_mixer.");
  out.pass_over("mtp.");
  out.pass_over("model.visual.");

  const auto layers = config.integer("num_hidden_layers", 40);
  const auto types =
      read_linear_layer_types(config, layers, {"linear_attention", "full_attention", "indexed_attention"});
  int64_t memory = 0;
  for (int64_t i = 0; i < layers; ++i) {
    const bool indexed = types[static_cast<size_t>(i)] != "linear_attention";
    config.need(
        !indexed || (m.index_heads > 0 && m.index_dim > 0 && m.budget > 0 && m.block > 0), "indexer_n_heads",
        "expected it and indexer_head_dim, indexer_budget, indexer_compress_ratio for layers that attend");
    const auto from = fmt::format("model.layers.{}.", i);
    if (std::count(m.memories.begin(), m.memories.end(), i + 1) > 0)
      add_memory(out, tensors, m, memory++, from);
    add_qwen4_layer(out, tensors, m, experts, indexed, from);
  }
}

const RegisterArchitecture register_qwen4_exp_text{
    {"qwen4_exp_text", {"number_of_conv_states"}, describe_qwen4}};

}  // namespace
}  // namespace weft
