// The scan with sequences shared by the blocks of clusters, which read a and b once: in each step every block leaves the
// map of its tokens in the shared memory of the others.
#include "ops/scan/strips_backward.cuh"
#include "ops/scan/strips_forward.cuh"
#include "ops/scan/strips_launch.cuh"

namespace weft::kernels::strips {
namespace {

template <class Kernel, class Problem>
CudaStatus launch(Kernel* kernel, const CudaScan& p, const Problem& problem, int64_t blocks, void* stream) {
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(p.batch * strips_of(p) * blocks));
  config.blockDim = dim3(kThreads);
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &cluster;
  config.numAttrs = 1;
  return status_of(cudaLaunchKernelEx(&config, kernel, problem, blocks));
}

// Calls body.run<Algebra>() for several channels a thread.
template <class Body>
CudaStatus with_packs(const CudaScan& p, const Body& body) {
  return with_algebra(p, [&]<class Algebra>() -> CudaStatus {
    if constexpr (Algebra::kChannels > 1)
      return body.template operator()<Algebra>();
    else
      return nullptr;
  });
}

}  // namespace

CudaStatus cluster_forward(const CudaScan& p, int64_t blocks, void* stream) {
  return with_packs(p, [&]<class Algebra>() {
    return launch(forward_kernel<Algebra, Pass::cluster>, p, p, blocks, stream);
  });
}

CudaStatus cluster_backward(const CudaScanGradient& g, int64_t blocks, void* stream) {
  return with_packs(g.forward, [&]<class Algebra>() {
    return launch(backward_kernel<Algebra, Pass::cluster>, g.forward, g, blocks, stream);
  });
}

}  // namespace weft::kernels::strips
