#include "io/pretrained/architectures/short_convolution.h"

namespace weft {

ShortConvolution read_short_convolution(const ConfigReader& config, int64_t width, int64_t taps) {
  return {
      .width = width, .taps = config.integer("conv_L_cache", taps), .bias = config.flag("conv_bias", false)};
}

Node short_convolution_layer(Node layer, const ShortConvolution& conv, const Node& ffn) {
  set_fields(layer, "mixer", "short_conv", "conv", conv.taps, "bias", conv.bias, "ffn", ffn);
  return layer;
}

void take_short_convolution(Blueprint& out, const std::string& mixer, const std::string& from,
                            const ShortConvolution& conv) {
  take_linear(out, mixer + "in", from + "in_proj", conv.bias);
  take_linear(out, mixer + "out", from + "out_proj", conv.bias);
  out.take(mixer + "conv.weight", Piece{.tensor = from + "conv.weight", .shape = {conv.width, 1, conv.taps}});
  if (conv.bias) out.take(mixer + "conv.bias", from + "conv.bias");
}

}  // namespace weft
