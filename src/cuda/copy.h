// Copies memory on one device with our own kernel: shows that kernels of this library run, and how fast
// memory is.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace weft::kernels {

// Copies `bytes`, a multiple of 16, between buffers that are 16-byte aligned and do not overlap. Does not
// wait.
cudaError_t copy(void* to, const void* from, int64_t bytes, int multiprocessors, cudaStream_t stream);

}  // namespace weft::kernels
