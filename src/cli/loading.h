// What several commands do with their --device and --dtype flags and the model they name.
#pragma once

#include <string>

#include "cli/command.h"
#include "io/model_directory.h"

namespace weft::cli {

// "fp32", "bf16", "fp16", "fp64"; InputError otherwise.
at::ScalarType dtype_named(const std::string& name);

// What --device asks for: auto is the first GPU when the CUDA library is loaded and finds one, else the CPU.
// InputError for an unknown name, Unsupported, with the reason, for a GPU that cannot be used.
at::Device session_device(const Session& session);

// A model directory or run, ready for inference in that type on the session's device.
LoadedModel open_model(const std::string& path, const std::string& dtype, const Session& session);

// The tokenizer of a model; InputError when it came without one.
const Tokenizer& tokenizer_of(const LoadedModel& loaded);

// Token ids of a flag, "5,17,3" or "[5, 17, 3]".
std::vector<int64_t> parse_ids(const std::string& text);

}  // namespace weft::cli
