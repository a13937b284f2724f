// How the scan is laid out on a device.
#pragma once

#include "ops/scan/strips.cuh"

namespace weft::kernels::strips {

inline int64_t element_bytes(CudaType type) { return type == CudaType::fp32 ? 4 : 2; }

// Channels of a thread: 8 bytes of the narrower of two equal types, so that rows of a warp are at least 128 bytes.
inline int channels_of(const CudaScan& p) {
  if (p.kind != CudaScanKind::real) return 1;
  const int wanted = p.a.type == CudaType::fp32 ? 2 : 4;
  const auto fits = [&](const void* data, CudaType type, int64_t batch, int64_t token) {
    return packs(data, token, wanted, element_bytes(type)) && batch % wanted == 0;
  };
  const bool typed = p.a.type == p.b.type || p.a.type == CudaType::fp32;
  return typed && p.channels % wanted == 0 && fits(p.a.data, p.a.type, p.a.batch, p.a.token) &&
                 fits(p.b.data, p.b.type, p.b.batch, p.b.token) && fits(p.h, p.b.type, 0, 0)
             ? wanted
             : 1;
}

inline int64_t strips_of(const CudaScan& p) {
  return (p.channels + 32 * channels_of(p) - 1) / (32 * channels_of(p));
}

// Calls body.run<Algebra>().
template <class Body>
CudaStatus with_algebra(const CudaScan& p, const Body& body) {
  if (p.kind == CudaScanKind::complex) return body.template operator()<ComplexNumber>();
  if (p.kind == CudaScanKind::matrix) return body.template operator()<MatrixPair>();
  if (channels_of(p) == 1) return body.template operator()<RealAny>();
  return with_type(p.b.type, [&]<class H>(H) {
    if constexpr (sizeof(H) == 2)
      if (p.a.type != CudaType::fp32) return body.template operator()<RealPacks<H, H, 4>>();
    return body.template operator()<RealPacks<float, H, 2>>();
  });
}

// How the blocks of a cluster share a sequence, 1 block: not at all. Narrow: in strips of half as many channels, whose
// threads take twice as many tokens.
struct Clusters {
  int64_t blocks = 1;
  bool narrow = false;
};

// Forward and backward with each sequence shared by the blocks of a cluster; compute capability 9.0.
CudaStatus cluster_forward(const CudaScan& p, const Clusters& clusters, void* stream);
CudaStatus cluster_backward(const CudaScanGradient& g, const Clusters& clusters, void* stream);

}  // namespace weft::kernels::strips
