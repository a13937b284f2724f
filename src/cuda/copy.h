// Kernels for measuring: one that copies memory, which shows that kernels of this library run and how fast memory is, and
// one that waits.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace weft::kernels {

// Copies `bytes`, a multiple of 16, between buffers that are 16-byte aligned and do not overlap. Does not
// wait.
cudaError_t copy(void* to, const void* from, int64_t bytes, int multiprocessors, cudaStream_t stream);

// One thread that does nothing for `seconds` by the device's clock of nanoseconds.
cudaError_t keep_busy(double seconds, cudaStream_t stream);

}  // namespace weft::kernels
