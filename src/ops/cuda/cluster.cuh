// CTAs of a cluster that write to each other's shared memory; only for sm_90 and newer.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "ops/cuda/device.cuh"

namespace weft::kernels {

__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// All threads of the cluster: what was written before is seen after. Its two halves, between which a thread does what need
// not wait; behind one barrier all CTAs run, before which their shared memory must not be written.
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_barrier() {
  cluster_arrive();
  cluster_wait();
}

// Where `address`, of this CTA's shared memory, lies in that of CTA `rank`.
__device__ __forceinline__ uint32_t address_in(uint32_t address, uint32_t rank) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}

// Writes to another CTA's shared memory, at an address from address_in; seen after the next barrier of the cluster.
__device__ __forceinline__ void store_in_cluster(uint32_t to, float x) {
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(to), "f"(x) : "memory");
}

// A barrier that one arrival and the announced bytes complete.
__device__ __forceinline__ void arrival_init(uint64_t* barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
}
__device__ __forceinline__ void arrival_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void arrival_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
}
// Waits for the end of the phase of this parity; phases count from 0.
__device__ __forceinline__ void arrival_wait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// Writes to another CTA's shared memory, whose barrier counts the bytes; addresses from address_in.
__device__ __forceinline__ void send8(uint32_t to, uint32_t barrier, uint32_t a, uint32_t b) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::"r"(to),
      "r"(a), "r"(b), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void send16(uint32_t to, uint32_t barrier, const uint32_t (&x)[4]) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
          to),
      "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(barrier)
      : "memory");
}

}  // namespace weft::kernels
