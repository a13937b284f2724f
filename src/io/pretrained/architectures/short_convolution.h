// What the LFM architectures share.
#pragma once

#include "io/pretrained/architectures/mlp.h"

namespace weft {

struct ShortConvolution {
  int64_t width, taps;
  bool bias;
};
// conv_L_cache and conv_bias; `taps` where the config is silent.
ShortConvolution read_short_convolution(const ConfigReader& config, int64_t width, int64_t taps);
// A layer of the mixer short_conv, its channel mixer `ffn`, and the layer's further options in `layer`.
Node short_convolution_layer(Node layer, const ShortConvolution& conv, const Node& ffn);
void take_short_convolution(Blueprint& out, const std::string& mixer, const std::string& from,
                            const ShortConvolution& conv);

}  // namespace weft
