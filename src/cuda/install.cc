#include "cuda/install.h"

#include "ops/activation/kernel_cuda.h"
#include "ops/attention/kernel_cuda.h"
#include "ops/attention/kernel_cuda_ring_step.h"
#include "ops/conv/kernel_cuda.h"
#include "ops/cuda_kernels.h"
#include "ops/linear/kernel_cuda.h"
#include "ops/linear_attention/kernel_cuda.h"
#include "ops/linear_attention/kernel_cuda_delta_step.h"
#include "ops/loss/kernel_cuda.h"
#include "ops/norm/kernel_cuda.h"
#include "ops/rnn/kernel_cuda.h"
#include "ops/rnn/kernel_cuda_parallel.h"
#include "ops/rope/kernel_cuda.h"
#include "ops/scan/kernel_cuda.h"
#include "ops/scan/kernel_cuda_selective.h"
#include "ops/scan/kernel_cuda_wkv.h"

namespace weft::kernels {

void install_all() {
  CudaKernels<ActivationCuda>::install(activation_cuda());
  CudaKernels<AttentionCudaTable>::install(attention_cuda_table());
  CudaKernels<RingStepCuda>::install(ring_step_cuda());
  CudaKernels<ShortConvCuda>::install(short_conv_cuda());
  CudaKernels<LossCuda>::install(loss_cuda());
  CudaKernels<NormCuda>::install(norm_cuda());
  CudaKernels<RopeCuda>::install(rope_cuda());
  CudaKernels<ScanCuda>::install(scan_cuda());
  CudaKernels<SelectiveScanCuda>::install(selective_scan_cuda());
  CudaKernels<WkvCuda>::install(wkv_cuda());
  CudaKernels<LinearCuda>::install(linear_cuda());
  CudaKernels<LinearAttentionCuda>::install(linear_attention_cuda());
  CudaKernels<DeltaStepCuda>::install(delta_step_cuda());
  CudaKernels<RnnCudaKernels>::install(rnn_cuda_kernels());
  CudaKernels<RnnParallelCudaKernels>::install(rnn_parallel_cuda_kernels());
}

}  // namespace weft::kernels
