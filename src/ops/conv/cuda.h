// The short convolution on CUDA kernels. Internal to the family.
#pragma once

#include "ops/conv/conv.h"

namespace weft::ops {

// Whether libweft_cuda.so is loaded.
bool has_cuda_short_conv();

// As short_conv and short_conv_step, of checked inputs that are not empty.
ShortConvResult cuda_short_conv(const ShortConv& in);
at::Tensor cuda_short_conv_step(const ShortConv& in);

}  // namespace weft::ops
