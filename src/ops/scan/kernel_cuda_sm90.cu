// The scan with sequences shared by the blocks of clusters, which read a and b once: in each step every block leaves the
// map of its tokens in the shared memory of the others.
#include "ops/scan/strips_backward.cuh"
#include "ops/scan/strips_forward.cuh"
#include "ops/scan/strips_launch.cuh"

namespace weft::kernels::strips {
namespace {

template <class Algebra, class Kernel, class Problem>
CudaStatus launch(Kernel* kernel, const CudaScan& p, const Problem& problem, int64_t blocks, void* stream) {
  constexpr int64_t kStrip = 32 * Algebra::kChannels;
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(p.batch * ((p.channels + kStrip - 1) / kStrip) * blocks));
  config.blockDim = dim3(kThreads);
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &cluster;
  config.numAttrs = 1;
  return status_of(cudaLaunchKernelEx(&config, kernel, problem, static_cast<int>(blocks)));
}

template <class Algebra>
struct NarrowOf;
template <class A, class H, int kVector>
struct NarrowOf<RealPacks<A, H, kVector>> {
  using Type = RealPacks<A, H, kVector / 2, 16>;
};

// Calls body.run<Algebra>() for several channels a thread.
template <class Body>
CudaStatus with_packs(const CudaScan& p, bool narrow, const Body& body) {
  return with_algebra(p, [&]<class Algebra>() -> CudaStatus {
    if constexpr (Algebra::kChannels > 1)
      return narrow ? body.template operator()<typename NarrowOf<Algebra>::Type>()
                    : body.template operator()<Algebra>();
    else
      return nullptr;
  });
}

}  // namespace

CudaStatus cluster_forward(const CudaScan& p, const Clusters& clusters, void* stream) {
  return with_packs(p, clusters.narrow, [&]<class Algebra>() {
    return launch<Algebra>(forward_kernel<Algebra, Pass::cluster>, p, p, clusters.blocks, stream);
  });
}

CudaStatus cluster_backward(const CudaScanGradient& g, const Clusters& clusters, void* stream) {
  return with_packs(g.forward, clusters.narrow, [&]<class Algebra>() {
    return launch<Algebra>(backward_kernel<Algebra, Pass::cluster>, g.forward, g, clusters.blocks, stream);
  });
}

}  // namespace weft::kernels::strips
