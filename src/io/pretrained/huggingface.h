// Model directories of the Hugging Face hub: config.json, safetensors with or without an index, tokenizer.json and
// tokenizer_config.json, generation_config.json, chat_template.jinja.
#pragma once

#include <memory>
#include <string>

#include "io/model_directory.h"
#include "io/pretrained/tensor_source.h"

namespace weft {

// Whether the folder has a config.json with a model_type.
bool is_huggingface_directory(const std::string& path);

// Opens the folder: the weights are mapped and keep the type they have in the file. A folder without a tokenizer gives
// a model without one. InputError for a key of the config that is not understood, missing or misshapen tensors, broken
// files; what is passed over (tensors that nothing uses) is listed in LoadedModel::notes.
// `config_name` is the file in it that says what the model is.
LoadedModel load_huggingface(const std::string& path, const std::string& config_name = "config.json");

// The text of a config as JSON: bare Infinity and NaN, which transformers wrote before version 5, are rewritten
// to {"__float__": "Infinity"}.
std::string config_as_json(const std::string& text);

// A model that has a config (LoadedModel::config_text) from weights under the checkpoint's names.
LoadedModel make_pretrained(const std::string& config_text, const std::string& config_path,
                            const TensorSource& file);

// Writes a folder that transformers opens: config.json as it was read, model.safetensors (shards of at most
// `shard_bytes`, with an index, when it is larger), and the tokenizer's files if there are any. InputError for a model
// that did not come from an architecture of architecture.h.
void save_huggingface(const std::string& path, const LoadedModel& loaded,
                      uint64_t shard_bytes = 5'000'000'000);

}  // namespace weft
