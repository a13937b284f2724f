#include "io/pretrained/architectures/delta_config.h"

#include <algorithm>

#include "base/error.h"
#include "base/text.h"

namespace weft {
namespace {

void append_rows(std::vector<int64_t>& rows, int64_t begin, int64_t count) {
  for (int64_t row = begin; row < begin + count; ++row) rows.push_back(row);
}

}  // namespace

DeltaConfig read_delta(const ConfigReader& config, const DeltaConfig& otherwise) {
  auto delta = otherwise;
  delta.heads = config.integer("linear_num_key_heads", otherwise.heads);
  delta.value_heads = config.integer("linear_num_value_heads", otherwise.value_heads);
  delta.head_dim = config.integer("linear_key_head_dim", otherwise.head_dim);
  delta.value_dim = config.integer("linear_value_head_dim", otherwise.value_dim);
  delta.conv = config.integer("linear_conv_kernel_dim", otherwise.conv);
  delta.activation = read_activation(config, "hidden_act", "silu");
  config.need(delta.heads > 0 && delta.value_heads % delta.heads == 0, "linear_num_value_heads",
              fmt::format("expected a multiple of the {} key heads", delta.heads));
  return delta;
}

Node delta_mixer(const DeltaConfig& delta) {
  return fields("mixer", "gated_delta_net", "heads", delta.heads, "head_dim", delta.head_dim, "value_heads",
                delta.value_heads, "value_dim", delta.value_dim, "conv", delta.conv, "activation",
                delta.activation);
}

void take_delta_separate(Blueprint& out, const std::string& mixer, const std::string& from) {
  for (const auto& [ours, theirs] : {std::pair{"qkv", "qkv"}, {"gate", "z"}, {"beta", "b"}, {"decay", "a"}})
    take_linear(out, mixer + ours, from + "in_proj_" + theirs);
}

void take_delta_grouped(Blueprint& out, const std::string& mixer, const std::string& from,
                        const DeltaConfig& delta) {
  const int64_t group = delta.value_heads / delta.heads;  // value heads of a key head
  const int64_t values = group * delta.value_dim, block = 2 * delta.head_dim + 2 * values;
  const auto rows = [&](int64_t block_rows, int64_t begin, int64_t count) {
    std::vector<int64_t> list;
    for (int64_t head = 0; head < delta.heads; ++head) append_rows(list, head * block_rows + begin, count);
    return list;
  };
  const auto take = [&](const std::string& to, const std::string& tensor, int64_t all,
                        std::vector<int64_t> which) {
    out.take(mixer + to,
             Piece{.tensor = from + tensor, .shape = {all, delta.width}, .rows = std::move(which)});
  };
  auto qkv = rows(block, 0, delta.head_dim);
  const auto keys = rows(block, delta.head_dim, delta.head_dim),
             own = rows(block, 2 * delta.head_dim, values);
  qkv.insert(qkv.end(), keys.begin(), keys.end());
  qkv.insert(qkv.end(), own.begin(), own.end());
  take("qkv.weight", "in_proj_qkvz.weight", delta.heads * block, std::move(qkv));
  take("gate.weight", "in_proj_qkvz.weight", delta.heads * block,
       rows(block, 2 * delta.head_dim + values, values));
  take("beta.weight", "in_proj_ba.weight", 2 * delta.value_heads, rows(2 * group, 0, group));
  take("decay.weight", "in_proj_ba.weight", 2 * delta.value_heads, rows(2 * group, group, group));
}

void take_delta_joined(Blueprint& out, const std::string& mixer, const std::string& from,
                       const DeltaConfig& delta) {
  const int64_t all = delta.channels() + delta.values() + 2 * delta.value_heads;
  int64_t next = 0;
  for (const auto& [ours, count] : {std::pair{"qkv", delta.channels()},
                                    {"gate", delta.values()},
                                    {"beta", delta.value_heads},
                                    {"decay", delta.value_heads}}) {
    out.take(mixer + ours + ".weight", Piece{.tensor = from + "in_proj.weight",
                                             .shape = {all, delta.width},
                                             .rows = row_range(next, next + count)});
    next += count;
  }
}

void take_delta_rest(Blueprint& out, const std::string& mixer, const std::string& from,
                     const std::string& norm, const std::string& output) {
  out.take(mixer + "A_log", from + "A_log");
  out.take(mixer + "dt_bias", from + "dt_bias");
  out.take(mixer + "norm.weight", from + norm + ".weight");
  take_linear(out, mixer + "out", from + output);
}

void take_delta_conv(Blueprint& out, const std::string& mixer, const std::string& tensor,
                     const DeltaConfig& delta) {
  out.take(mixer + "conv.weight", Piece{.tensor = tensor, .shape = {delta.channels(), 1, delta.conv}});
}

std::vector<std::string> read_linear_layer_types(const ConfigReader& config, int64_t layers,
                                                 const std::vector<std::string>& known,
                                                 int64_t full_attention_interval) {
  const auto interval = config.integer("full_attention_interval", full_attention_interval);
  auto types = config.texts({"layer_types", "layers_block_type"});
  if (types.empty())
    for (int64_t i = 0; i < layers; ++i)
      types.push_back((i + 1) % interval == 0 ? "full_attention" : "linear_attention");
  require(static_cast<int64_t>(types.size()) >= layers, "{}: {} types of layers, but num_hidden_layers is {}",
          config.where("layer_types"), types.size(), layers);
  for (auto& type : types) {
    if (type == "attention") type = "full_attention";
    if (type == "mamba") type = "linear_attention";
    config.need(std::find(known.begin(), known.end(), type) != known.end(), "layer_types",
                "expected layers of " + join(known));
  }
  return types;
}

}  // namespace weft
