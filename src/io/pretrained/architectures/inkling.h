// What the generations of Inkling share.
#pragma once

#include <string>
#include <vector>

#include "io/pretrained/architectures/moe.h"

namespace weft {

// A layer of one branch: `first`, a mixer or {ffn: ...}, with a short convolution of `taps` behind it, whose output is
// multiplied by `scale`.
Node with_convolution(Node first, int64_t taps, double norm_eps, double scale = 1);
// A depthwise convolution's weight, [channels, 1, taps] in the file.
void take_convolution(Blueprint& out, const std::string& to, const std::string& tensor, int64_t channels,
                      int64_t taps);
// layer_types: hybrid_sliding or hybrid for each layer. Without it the layers local_layer_ids slide, and without these
// all but every sixth.
std::vector<std::string> read_hybrid_types(const ConfigReader& config, int64_t layers);

}  // namespace weft
