// The two directions of architecture.h's links: a GGUF file seen as a Hugging Face checkpoint, and the reverse.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "io/gguf/architecture.h"
#include "io/pretrained/tensor_source.h"

namespace weft {

// The tensors of a GGUF file under the names and with the layouts of the Hugging Face checkpoint; those that no link
// uses keep their GGUF names. `file` outlives it. Quantized tensors are expanded when they are asked for and not kept,
// but for the last one.
std::unique_ptr<TensorSource> gguf_tensor_source(const GgufFile& file, const GgufNames& names);

// The GGUF tensors that hold `tensors`, a checkpoint whose links are `names`. `type` is that of matrices; vectors, norms
// and the small tensors that llama.cpp wants in fp32 stay fp32, and so do rows that are no whole blocks. InputError when
// a tensor has no link.
std::vector<GgufOutput> gguf_outputs(const GgufNames& names,
                                     std::vector<std::pair<std::string, at::Tensor>> tensors, GgmlType type,
                                     const std::string& path);

}  // namespace weft
