// The family's table: its forms in order of preference, and decoding.
#include "ops/linear_attention/kernel_cuda.h"

namespace weft::kernels {

const LinearAttentionCuda& linear_attention_cuda() {
  static constexpr const CudaLinearAttentionForm* kForms[] = {
      &kCudaScalarForm, &kCudaVectorForm, &kCudaDeltaForm, &kCudaDplrForm, &kCudaPlainForm, nullptr};
  static constexpr LinearAttentionCuda kTable = {kForms,          cuda_takes_step, cuda_step,
                                                 cuda_takes_ring, cuda_ring_step,  cuda_ring_fold};
  return kTable;
}

}  // namespace weft::kernels
