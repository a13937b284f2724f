// CUDA kernels of the linear attention family; no torch.
#pragma once

#include "ops/cuda/types.h"
#include "ops/linear_attention/kernel.h"

namespace weft::kernels {

// Letters and meaning as in linear_attention.h. Everything lies on the device.
struct CudaLinearAttention {
  int64_t batch = 0, tokens = 0, heads = 0, key_heads = 0, key_width = 0, value_width = 0;
  int64_t erase_heads = 0;  // of erase_read and erase_write: key_heads or heads
  float scale = 1;
  CudaRows q, k, v;  // one type, that of y and of the gradients of q, k, v, erase_read, erase_write
  Decay decay = Decay::none;
  CudaRows log_decay;    // fp32 or the type of v
  CudaRows beta, write;  // fp32; null: absent. The caller has put beta in write where that was not given
  CudaRows erase_read, erase_write;      // the type of v; null: absent
  const float* bonus = nullptr;          // [H, K] or null
  const float* initial_state = nullptr;  // [B, H, K, V] or null for zeros
  const uint8_t* starts = nullptr;       // [B, T] contiguous, 1 where a document begins; null: none
  void* y = nullptr;                     // [B, T, H, V] contiguous, in the type of v
  float* state = nullptr;                // [B, H, K, V] after the last token
  bool decay_gradient = true;            // the backward will be asked for dlog_decay
  int multiprocessors = 0, capability = 0;
};

// All contiguous; a null output is not wanted. The kernels write every element of those that are. Gradients of what value
// heads share are for value heads; the caller sums them.
struct CudaLinearAttentionGradients {
  const void* dy = nullptr;       // [B, T, H, V] in the type of v
  const float* dstate = nullptr;  // [B, H, K, V] or null for zeros
  // [B, T, H, K] (dv: V): in fp32 where heads share (group_fp32), else in the type of v
  bool group_fp32 = false;  // of dq, dk
  void *dq = nullptr, *dk = nullptr, *dv = nullptr;
  bool erase_fp32 = false;  // of derase_read, derase_write
  void *derase_read = nullptr, *derase_write = nullptr;
  float* dlog_decay = nullptr;                // [B, T, H] or [B, T, H, K]
  float *dbeta = nullptr, *dwrite = nullptr;  // [B, T, H]
  float* dbonus = nullptr;                    // [B, H, K]
  float* dinitial = nullptr;                  // [B, H, K, V]
};

// One way to compute the family for some of its forms, types and sizes.
struct CudaLinearAttentionForm {
  const char* name;
  bool (*takes)(const CudaLinearAttention& p);
  // Bytes of what the forward leaves for the backward (0 when `p` is run without one), and of scratch.
  int64_t (*saved_bytes)(const CudaLinearAttention& p);
  int64_t (*forward_scratch)(const CudaLinearAttention& p);
  int64_t (*backward_scratch)(const CudaLinearAttention& p);
  // `saved` null: no backward will follow. Neither waits; both are free of atomics whose order shows in the result.
  CudaStatus (*forward)(const CudaLinearAttention& p, void* saved, void* scratch, void* stream);
  CudaStatus (*backward)(const CudaLinearAttention& p, const CudaLinearAttentionGradients& g,
                         const void* saved, void* scratch, void* stream);
  // dq and dk are [B, T, key_heads, K] in the type of v, summed over the value heads that share them.
  bool sums_groups = false;
};

// One token with a state that is only read, as in ring.h. p.starts: [B] sequences that drop their ring and state. The
// type of keys, values and decays is fp32; y is in the type of v.
struct CudaRing : CudaLinearAttention {
  int64_t capacity = 0, rows = 1, decay_width = 0, keep = 0;  // N, R, W
  int64_t* length = nullptr;                                  // [B] on the device, moved on by the kernel
  float *keys = nullptr, *values = nullptr, *decays = nullptr;
};

// The family. Nothing here waits for the device or reads from it on the host.
struct LinearAttentionCuda {
  const CudaLinearAttentionForm* const* forms;  // in order of preference, closed by null
  // One token for decoding: p.tokens is 1, p.state is read and written in place, initial_state is null. Here and in a
  // ring, beta and write may also have the type of v.
  bool (*takes_step)(const CudaLinearAttention& p);
  CudaStatus (*step)(const CudaLinearAttention& p, void* stream);
  bool (*takes_ring)(const CudaRing& p);
  CudaStatus (*ring_step)(const CudaRing& p, void* stream);
  CudaStatus (*ring_fold)(const CudaRing& p, void* stream);  // all entries into the state, lengths to zero
};

const LinearAttentionCuda& linear_attention_cuda();

// Decoding, as in the table.
bool cuda_takes_step(const CudaLinearAttention& p);
CudaStatus cuda_step(const CudaLinearAttention& p, void* stream);
bool cuda_takes_ring(const CudaRing& p);
CudaStatus cuda_ring_step(const CudaRing& p, void* stream);
CudaStatus cuda_ring_fold(const CudaRing& p, void* stream);

// Forms that tensor cores compute, each in its own file; `takes` says what.
extern const CudaLinearAttentionForm kCudaScalarForm;  // decay none, constant, scalar without erase
extern const CudaLinearAttentionForm kCudaVectorForm;  // vector decay without erase
extern const CudaLinearAttentionForm kCudaDeltaForm;   // delta rule with any decay
extern const CudaLinearAttentionForm kCudaDplrForm;    // diagonal plus low rank
extern const CudaLinearAttentionForm kCudaPlainForm;   // everything, in fp32 arithmetic

}  // namespace weft::kernels
