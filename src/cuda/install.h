// The kernels of every op family that libweft_cuda.so holds.
#pragma once

namespace weft::kernels {

// Puts the table of each family where its op looks for it, ops/cuda_kernels.h.
void install_all();

}  // namespace weft::kernels
