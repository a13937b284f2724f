// Kernels of one stream that overlap: on Hopper one may start before the kernel ahead of it has ended, and then waits for
// what that one and all before it wrote. Of use where kernels take a few microseconds, as in decoding.
#pragma once

#include "ops/cuda/device.cuh"

namespace weft::kernels {

// What a kernel of launch_early does in every thread. Before the second it may only ask for memory to be brought near
// (prefetch), not read or write any.
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
__device__ __forceinline__ void wait_for_last() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Before wait_for_last: asks for `bytes` from `from` on, null for none; by all threads of a block together.
__device__ __forceinline__ void prefetch_all(const void* from, int64_t bytes) {
  constexpr int kLine = 128;
  if (from)
    for (int64_t at = int64_t{threadIdx.x} * kLine; at < bytes; at += int64_t{blockDim.x} * kLine)
      prefetch(static_cast<const char*>(from) + at);
}

// As kernel<<<grid, threads, bytes, stream>>>(arguments...), in clusters of `cluster` blocks. Code for older GPUs, which does
// not wait, is what newer ones than Hopper run: there kernels follow each other.
template <class... Parameters, class... Arguments>
CudaStatus launch_early(void (*kernel)(Parameters...), dim3 grid, dim3 threads, size_t bytes, void* stream,
                        int capability, unsigned cluster, const Arguments&... arguments) {
  cudaLaunchAttribute attributes[2];
  unsigned count = 0;
  if (capability == 90) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = cluster;
    attributes[count].val.clusterDim.y = attributes[count].val.clusterDim.z = 1;
    ++count;
  }
  const cudaLaunchConfig_t config{grid, threads, bytes, static_cast<cudaStream_t>(stream), attributes, count};
  return status_of(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...));
}

}  // namespace weft::kernels
