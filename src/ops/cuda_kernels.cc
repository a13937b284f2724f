#include "ops/cuda_kernels.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#include "ops/cuda_library.h"

namespace weft {

CudaLaunch::CudaLaunch(const at::Tensor& x) : guard_(x.device()) {
  const c10::impl::VirtualGuardImpl cuda(at::kCUDA);
  stream_ = cuda.getStreamNativeHandle(cuda.getStream(x.device()));
  const auto& devices = load_cuda_library().devices;
  const auto index = static_cast<size_t>(x.device().index());
  invariant(index < devices.size(), "a kernel for {}, which the CUDA library did not find", x.device().str());
  multiprocessors_ = devices[index].multiprocessors;
  capability_ = devices[index].major * 10 + devices[index].minor;
}

}  // namespace weft
