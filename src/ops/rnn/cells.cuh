// The pointwise steps of the built-in cells and their derivatives for one neuron of one sequence, as in cells.cc.
// forward: gates before the step -> what the backward step wants, in place. backward adds to `da`.
#pragma once

#include "ops/cuda/device.cuh"
#include "ops/rnn/kernel_cuda.h"

namespace weft::kernels {

__device__ __forceinline__ float fast_exp(float x) { return fast_exp2(x * kLog2e); }
__device__ __forceinline__ float fast_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float sigmoid(float x) { return fast_reciprocal(1.f + fast_exp(-x)); }
__device__ __forceinline__ float squash(float x) {
  return 1.f - 2.f * fast_reciprocal(1.f + fast_exp(2.f * x));
}

// How cells take sigmoid and tanh of what is not multiplied up over tokens. Quick, with an error of 2^-11, is for 16-bit
// inputs: half of the time of a narrow LSTM's token is spent here.
struct Precise {
  __device__ static float sigmoid(float x) { return kernels::sigmoid(x); }
  __device__ static float squash(float x) { return kernels::squash(x); }
};
struct Quick {
  __device__ static float squash(float x) {
    float y;
    asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
  }
  __device__ static float sigmoid(float x) { return 0.5f + 0.5f * squash(0.5f * x); }
};

__device__ __forceinline__ float sigmoid_slope(float s) { return s - s * s; }
__device__ __forceinline__ float squash_slope(float s) { return 1.f - s * s; }

template <class Math = Precise>
struct Elman {
  static constexpr int kGates = 1, kRecurrent = 1, kInput = 1, kStates = 1, kParameters = 0;
  __device__ static void forward(float (&g)[1], const float (&)[1], const float*, float (&after)[1]) {
    after[0] = Math::squash(g[0]);
  }
  __device__ static void backward(const float (&)[1], const float (&)[1], const float*,
                                  const float (&after)[1], const float (&d_after)[1], float (&dg)[1],
                                  float (&ds)[1], float*) {
    dg[0] = d_after[0] * squash_slope(after[0]);
    ds[0] = 0;
  }
};

// Saves i, f, z, o after their sigmoid or tanh.
template <class Math = Precise>
struct Lstm {
  static constexpr int kGates = 4, kRecurrent = 4, kInput = 4, kStates = 2, kParameters = 0;
  __device__ static void forward(float (&g)[4], const float (&before)[2], const float*, float (&after)[2]) {
    g[0] = Math::sigmoid(g[0]);
    g[1] = sigmoid(g[1]);
    g[2] = Math::squash(g[2]);
    g[3] = Math::sigmoid(g[3]);
    after[1] = g[1] * before[1] + g[0] * g[2];
    after[0] = g[3] * Math::squash(after[1]);
  }
  __device__ static void backward(const float (&g)[4], const float (&before)[2], const float*,
                                  const float (&after)[2], const float (&d_after)[2], float (&dg)[4],
                                  float (&ds)[2], float*) {
    const float squashed = Math::squash(after[1]);
    const float dc = d_after[1] + d_after[0] * g[3] * squash_slope(squashed);
    dg[0] = dc * g[2] * sigmoid_slope(g[0]);
    dg[1] = dc * before[1] * sigmoid_slope(g[1]);
    dg[2] = dc * g[0] * squash_slope(g[2]);
    dg[3] = d_after[0] * squashed * sigmoid_slope(g[3]);
    ds[0] = 0;
    ds[1] = dc * g[1];
  }
};

// Saves n_h, and r, u, n after their sigmoid or tanh.
template <class Math = Precise>
struct Gru {
  static constexpr int kGates = 4, kRecurrent = 3, kInput = 3, kStates = 1, kParameters = 0;
  __device__ static void forward(float (&g)[4], const float (&before)[1], const float*, float (&after)[1]) {
    g[1] = Math::sigmoid(g[1]);
    g[2] = sigmoid(g[2]);
    g[3] = Math::squash(g[3] + g[1] * g[0]);
    after[0] = g[3] + g[2] * (before[0] - g[3]);
  }
  __device__ static void backward(const float (&g)[4], const float (&before)[1], const float*,
                                  const float (&)[1], const float (&d_after)[1], float (&dg)[4],
                                  float (&ds)[1], float*) {
    const float kept = d_after[0] * g[2], dn = (d_after[0] - kept) * squash_slope(g[3]);
    dg[0] = dn * g[1];
    dg[1] = dn * g[0] * sigmoid_slope(g[1]);
    dg[2] = d_after[0] * (before[0] - g[3]) * sigmoid_slope(g[2]);
    dg[3] = dn;
    ds[0] = kept;
  }
};

// States h, c, n, m. Saves i, the forget gate before its log-sigmoid, z, o.
template <class Math = Precise>
struct Slstm {
  static constexpr int kGates = 4, kRecurrent = 4, kInput = 4, kStates = 4, kParameters = 0;
  __device__ static float log_sigmoid(float x) { return fminf(x, 0.f) - log1pf(fast_exp(-fabsf(x))); }
  // e^min(x, 0); NaN stays
  __device__ static float bounded_exp(float x) { return fast_exp(x > 0.f ? 0.f : x); }
  __device__ static void forward(float (&g)[4], const float (&before)[4], const float*, float (&after)[4]) {
    const float kept = log_sigmoid(g[1]) + before[3];
    const float m = before[2] == 0.f || g[0] > kept ? g[0] : kept;
    g[0] = bounded_exp(g[0] - m);
    g[2] = Math::squash(g[2]);
    g[3] = Math::sigmoid(g[3]);
    const float f = bounded_exp(kept - m);
    after[1] = f * before[1] + g[0] * g[2];
    const float n = f * before[2] + g[0];
    after[2] = n < 1.f ? 1.f : n;
    after[0] = g[3] * after[1] * fast_reciprocal(after[2]);
    after[3] = m;
  }
  __device__ static void backward(const float (&g)[4], const float (&before)[4], const float*,
                                  const float (&after)[4], const float (&d_after)[4], float (&dg)[4],
                                  float (&ds)[4], float*) {
    const float f = bounded_exp(log_sigmoid(g[1]) + before[3] - after[3]);
    const float share = d_after[0] * fast_reciprocal(after[2]);
    const float dc = d_after[1] + share * g[3], dn = d_after[2] - share * after[0];
    dg[0] = g[0] * (g[2] * dc + dn);
    dg[1] = f * (before[1] * dc + before[2] * dn) * sigmoid(-g[1]);
    dg[2] = dc * g[0] * squash_slope(g[2]);
    dg[3] = d_after[0] * after[0] * (1.f - g[3]);
    ds[0] = ds[3] = 0;
    ds[1] = f * dc;
    ds[2] = f * dn;
  }
};

struct ParaGru {
  static constexpr int kGates = 3, kRecurrent = 0, kInput = 3, kStates = 1, kParameters = 3;
  __device__ static void forward(float (&g)[3], const float (&before)[1], const float* a, float (&after)[1]) {
    const float h = before[0];
    g[0] = sigmoid(g[0] + a[0] * h);
    g[1] = sigmoid(g[1] + a[1] * h);
    g[2] = squash(g[2] + a[2] * g[1] * h);
    after[0] = h + g[0] * (g[2] - h);
  }
  // forward, and d after[i] / d before[j] as jacobian[i][j]
  __device__ static void linearize(float (&g)[3], const float (&before)[1], const float* a, float (&after)[1],
                                   float (&jacobian)[1][1]) {
    forward(g, before, a, after);
    const float h = before[0], dz = a[0] * sigmoid_slope(g[0]), dr = a[1] * sigmoid_slope(g[1]);
    const float dg = a[2] * squash_slope(g[2]) * (g[1] + h * dr);
    jacobian[0][0] = 1.f - g[0] + (g[2] - h) * dz + g[0] * dg;
  }
  __device__ static void backward(const float (&g)[3], const float (&before)[1], const float* a,
                                  const float (&)[1], const float (&d_after)[1], float (&dg)[3],
                                  float (&ds)[1], float* da) {
    const float h = before[0], dh = d_after[0], moved = dh * g[0];
    dg[2] = moved * squash_slope(g[2]);
    const float fed = dg[2] * a[2];
    dg[0] = dh * (g[2] - h) * sigmoid_slope(g[0]);
    dg[1] = fed * h * sigmoid_slope(g[1]);
    ds[0] = dg[0] * a[0] + dg[1] * a[1] + fed * g[1] + dh - moved;
    da[0] += dg[0] * h;
    da[1] += dg[1] * h;
    da[2] += dg[2] * g[1] * h;
  }
};

struct ParaLstm {
  static constexpr int kGates = 3, kRecurrent = 0, kInput = 3, kStates = 2, kParameters = 5;
  __device__ static void forward(float (&g)[3], const float (&before)[2], const float* a, float (&after)[2]) {
    const float h = before[0], c = before[1];
    g[0] = sigmoid(g[0] + a[0] * h + a[3] * c);
    g[2] = squash(g[2] + a[2] * h);
    after[1] = g[2] + g[0] * (c - g[2]);
    g[1] = sigmoid(g[1] + a[1] * h + a[4] * after[1]);
    after[0] = g[1] * squash(after[1]);
  }
  __device__ static void linearize(float (&g)[3], const float (&before)[2], const float* a, float (&after)[2],
                                   float (&jacobian)[2][2]) {
    forward(g, before, a, after);
    const float f = g[0], o = g[1], z = g[2], squashed = squash(after[1]);
    const float df = sigmoid_slope(f) * (before[1] - z), d_o = sigmoid_slope(o) * squashed;
    const float dz = (1.f - f) * squash_slope(z);
    const float c_h = a[0] * df + a[2] * dz, c_c = a[3] * df + f;
    const float h_c = a[4] * d_o + o * squash_slope(squashed);
    jacobian[0][0] = c_h * h_c + a[1] * d_o;
    jacobian[0][1] = c_c * h_c;
    jacobian[1][0] = c_h;
    jacobian[1][1] = c_c;
  }
  __device__ static void backward(const float (&g)[3], const float (&before)[2], const float* a,
                                  const float (&after)[2], const float (&d_after)[2], float (&dg)[3],
                                  float (&ds)[2], float* da) {
    const float h = before[0], c = before[1], squashed = squash(after[1]), dh = d_after[0];
    dg[1] = dh * squashed * sigmoid_slope(g[1]);
    const float dc = dg[1] * a[4] + dh * g[1] * squash_slope(squashed) + d_after[1], kept = dc * g[0];
    dg[0] = dc * (c - g[2]) * sigmoid_slope(g[0]);
    dg[2] = (dc - kept) * squash_slope(g[2]);
    ds[0] = dg[0] * a[0] + dg[1] * a[1] + dg[2] * a[2];
    ds[1] = dg[0] * a[3] + kept;
    da[0] += dg[0] * h;
    da[1] += dg[1] * h;
    da[2] += dg[2] * h;
    da[3] += dg[0] * c;
    da[4] += dg[1] * after[1];
  }
};

// Calls body(Cell{}).
template <class Math, class Body>
CudaStatus with_matrix_cell(RnnCell cell, const Body& body) {
  if (cell == RnnCell::elman) return body(Elman<Math>{});
  if (cell == RnnCell::lstm) return body(Lstm<Math>{});
  if (cell == RnnCell::gru) return body(Gru<Math>{});
  return body(Slstm<Math>{});
}
template <class Body>
CudaStatus with_para_cell(RnnCell cell, const Body& body) {
  if (cell == RnnCell::para_gru) return body(ParaGru{});
  return body(ParaLstm{});
}

}  // namespace weft::kernels
