#include "io/pretrained/architecture.h"

#include <map>

#include "base/error.h"
#include "base/text.h"

namespace weft {
namespace {

std::map<std::string, Architecture>& registry() {
  static std::map<std::string, Architecture> all;
  return all;
}

// Of training, of generation and of the library that wrote the file.
void ignore_common(const ConfigReader& config) {
  config.ignore({"model_type",
                 "architectures",
                 "auto_map",
                 "transformers_version",
                 "dtype",
                 "torch_dtype",
                 "use_cache",
                 "bos_token_id",
                 "eos_token_id",
                 "pad_token_id",
                 "decoder_start_token_id",
                 "sep_token_id",
                 "initializer_range",
                 "attention_dropout",
                 "output_router_logits",
                 "router_aux_loss_coef",
                 "output_attentions",
                 "output_hidden_states",
                 "return_dict",
                 "is_decoder",
                 "is_encoder_decoder",
                 "add_cross_attention",
                 "cross_attention_hidden_size",
                 "chunk_size_feed_forward",
                 "gradient_checkpointing",
                 "problem_type",
                 "id2label",
                 "label2id",
                 "finetuning_task",
                 "task_specific_params",
                 "_name_or_path",
                 "attn_implementation",
                 "_attn_implementation",
                 "max_position_embeddings",
                 "name_or_path",
                 "num_logits_to_keep",
                 "_attn_implementation_autoset"});
}

}  // namespace

std::string TensorNames::pick(const std::vector<std::string>& spellings) const {
  if (file_)
    for (const auto& name : spellings)
      if (file_->contains(name)) return name;
  return spellings.front();
}

int64_t TensorNames::rows(const std::string& name, int64_t without_file) const {
  if (!file_ || !file_->contains(name)) return without_file;
  const auto shape = file_->shape(name);
  return shape.empty() ? without_file : shape.front();
}

void register_architecture(Architecture architecture) {
  const auto name = architecture.model_type;
  invariant(registry().emplace(name, std::move(architecture)).second,
            "the architecture {} is registered twice", name);
}

std::vector<std::string> architecture_names() {
  std::vector<std::string> names;
  for (const auto& [name, architecture] : registry()) names.push_back(name);
  return names;
}

const Architecture& find_architecture(const std::string& model_type, const std::string& where) {
  const auto found = registry().find(model_type);
  if (found != registry().end()) return found->second;
  const auto guess = nearest_word(model_type, architecture_names());
  throw InputError(fmt::format("{}: weft has no architecture '{}'{}; it has {}", where, model_type,
                               guess.empty() ? "" : ", did you mean '" + guess + "'?",
                               join(architecture_names())));
}

Blueprint describe_pretrained(const ConfigReader& config, const TensorSource* file) {
  const auto model_type = config.text("model_type");
  const auto& architecture = find_architecture(model_type, config.where("model_type"));
  Blueprint blueprint;
  blueprint.model.name = model_type;
  blueprint.source = config.where("model_type");
  for (const char* key : {"layer_types", "mlp_layer_types", "layers_block_type"})
    if (config.has(key) && config.has("num_hidden_layers")) {
      const auto count = config.texts(key).size();
      const auto layers = config.integer("num_hidden_layers");
      require(static_cast<int64_t>(count) == layers, "{}: {} entries for {} layers (num_hidden_layers)",
              config.where(key), count, layers);
    }
  config.forget({"layer_types", "mlp_layer_types", "layers_block_type", "num_hidden_layers"});
  architecture.describe(config, TensorNames(file), blueprint);
  ignore_common(config);
  for (const auto& key : architecture.irrelevant) config.ignore({key.c_str()});
  config.finish();
  return blueprint;
}

}  // namespace weft
