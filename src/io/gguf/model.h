// Models in GGUF files: opening them as models of weft, and writing them.
#pragma once

#include <string>

#include "io/gguf/gguf.h"
#include "io/model_directory.h"

namespace weft {

// The config.json of the model that the file holds. InputError for an architecture that is not known and for metadata
// that is missing or of another type.
std::string gguf_config_text(const GgufFile& file);

// Opens the file: plain tensors are mapped and keep their type, quantized ones are expanded to fp32. InputError for a
// file that does not hold what its architecture needs; tensors that nothing uses are listed in LoadedModel::notes.
LoadedModel load_gguf(const std::string& path);

// Writes a model that has a config (LoadedModel::config_text) of an architecture that GGUF names; matrices have `type`,
// one of F32, F16, BF16 and Q8_0. The tokenizer is copied from the GGUF file that the model came from, if it did, or made from
// a byte-level tokenizer.json; other tokenizers are left out.
// InputError with the architectures that can be written for others.
void save_gguf(const std::string& path, const LoadedModel& loaded, GgmlType type);

}  // namespace weft
