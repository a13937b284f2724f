// h_t = a_t h_{t-1} + b_t and its gradients. Blocks take strips of channels (strips.cuh). With few sequences several blocks
// share each: on Hopper those of a cluster, in turns; elsewhere each takes a segment, a first pass leaves only the map of
// each, and the second begins with the product of those before. Sums are always taken in the same order.
#include "ops/scan/kernel_cuda.h"

#include "ops/scan/strips_backward.cuh"
#include "ops/scan/strips_forward.cuh"
#include "ops/scan/strips_launch.cuh"

namespace weft::kernels {
namespace {

using namespace strips;

// A cluster lies within one of the groups of about 16 multiprocessors that a device consists of: with larger ones than
// these some would have to wait for the others. Pairs always find room.
Clusters clusters_of(const CudaScan& p) {
  if (p.capability != 90 || channels_of(p) == 1) return {};
  const int64_t rows = std::max<int64_t>(p.batch * strips_of(p), 1), steps = p.tokens / kStep<RealAny>;
  const int64_t blocks =
      std::max<int64_t>(1, std::min({p.multiprocessors * 3 / 4 / rows, steps / 4, kMostBlocks}));
  const bool pairs = steps >= 8 && 4 * rows <= p.multiprocessors && blocks < 4;
  return pairs ? Clusters{2, true} : Clusters{blocks, false};
}

// Blocks that share a sequence: as many as fill the device, but none with less than four steps.
int64_t segments(const CudaScan& p) {
  if (const int64_t blocks = clusters_of(p).blocks; blocks > 1) return blocks;
  const int64_t rows = p.batch * strips_of(p),
                step = p.kind == CudaScanKind::real ? kStep<RealAny> : kStep<MatrixPair>,
                steps = (p.tokens + step - 1) / step;
  return std::max<int64_t>(1, std::min(p.multiprocessors / std::max<int64_t>(rows, 1), steps / 4));
}

int64_t scratch(const CudaScan& p) {
  if (clusters_of(p).blocks > 1) return 0;
  const int64_t numbers = p.kind == CudaScanKind::real ? 3 : p.kind == CudaScanKind::complex ? 5 : 7;
  return p.batch * segments(p) * p.channels * numbers;
}

// `maps` and `whole`: kernels for the two passes over segments.
template <class Kernel, class Problem>
CudaStatus launch(Kernel* maps, Kernel* whole, const CudaScan& p, const Problem& problem, void* stream) {
  const int64_t parts = segments(p), blocks = p.batch * strips_of(p) * parts;
  if (blocks == 0) return nullptr;
  const auto grid = static_cast<unsigned>(blocks);
  const auto s = static_cast<cudaStream_t>(stream);
  if (parts > 1) maps<<<grid, kThreads, 0, s>>>(problem, static_cast<int>(parts));
  whole<<<grid, kThreads, 0, s>>>(problem, static_cast<int>(parts));
  return last_status();
}

CudaStatus forward(const CudaScan& p, void* stream) {
  if (const Clusters clusters = clusters_of(p); clusters.blocks > 1)
    return cluster_forward(p, clusters, stream);
  return with_algebra(p, [&]<class Algebra>() {
    return launch(forward_kernel<Algebra, Pass::maps>, forward_kernel<Algebra, Pass::whole>, p, p, stream);
  });
}

CudaStatus backward(const CudaScanGradient& g, void* stream) {
  if (const Clusters clusters = clusters_of(g.forward); clusters.blocks > 1)
    return cluster_backward(g, clusters, stream);
  return with_algebra(g.forward, [&]<class Algebra>() {
    return launch(backward_kernel<Algebra, Pass::maps>, backward_kernel<Algebra, Pass::whole>, g.forward, g,
                  stream);
  });
}

constexpr ScanCuda kTable = {forward, backward, segments, scratch};

}  // namespace

const ScanCuda& scan_cuda() { return kTable; }

}  // namespace weft::kernels
