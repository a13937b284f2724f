// What the kernels of the scalar form share. README.md has the algebra; everything is one operation, the sweep:
//   out_r = f_r sum_i D(i, r] w_i (a_r . b_i) c_i    over the tokens i up to r, or from r on when reversed
// with the state sum_i D w_i b_i c_i' in registers. Forward: a, b, c = q, k, v. Of its gradients dq is the sweep of
// dy, v, k; reversed, dk is that of v, dy, q and dv that of k, q, dy.
#pragma once

#include <cuda.h>
#include <vector_types.h>

#include "ops/linear_attention/kernel_cuda.h"

namespace weft::kernels::scalar {

constexpr int kChunk = 64;  // tokens
constexpr int kSlice = 64;  // columns of c and out that one warpgroup computes

// States [B, H, segments, rows x columns] in fp32 with strides of rows and columns; null data: zeros, or not wanted.
struct States {
  float* data = nullptr;
  int segments = 1;
  int row = 0, column = 0;
};

struct Role {
  CUtensorMap a, b, c, out, extra;            // only b and c where there are no outputs
  int a_group = 1, b_group = 1, c_group = 1;  // value heads that share a head of a, b, c
  int depth = 0, width = 0;                   // of the state: that of a and b, that of c and out
  int slices = 1, groups = 1;                 // slices of c; blocks for one segment of one sequence
  bool reverse = false, store = true;
  // dots[b, h, slice, t] = out before its factor w . extra, over the slice, and the same without the pair (t, t) in
  // `off_diagonal`; null: not wanted. Extra is read where any is.
  int extra_group = 1;
  float *dots = nullptr, *off_diagonal = nullptr;
  States initial, final;
  // [B, H, slices, checkpoints, panels * 64 * 64] in the type of c: written by the sweep, or (reversed) multiplied
  // elementwise with the state there and summed: products[B, H, slices, checkpoints, 4].
  void* checkpoints = nullptr;
  float* products = nullptr;
};

struct Sweep {
  Role roles[3];
  int num_roles = 0;
  bool interleaved = false;             // the blocks of roles 0 and 1 alternate, because they read the same
  int blocks = 0, multiprocessors = 1;  // pieces of work
  bool outputs = true, extra = false;   // extra: some role reads it
  CudaType type = CudaType::bf16;
  int panels = 1, warpgroups = 1, stages = 2;  // panels: of 64 columns, that hold a row of a and of b
  int batch = 0, heads = 0, tokens = 0, chunks = 0, segments = 1, segment_chunks = 0;
  int first_segment = 0;  // blocks are for `segments` segments from this one on
  int checkpoint_chunks = 1, num_checkpoints = 0;
  float scale = 1;
  CudaRows log_decay, write;  // null data: none
  const uint8_t* starts = nullptr;
  float* passes = nullptr;  // [B, H, segments] what a segment multiplies the state with; only without outputs
};

// Shared memory of a block, in bytes from a multiple of 1024.
struct Gates {  // of one chunk and head, tokens in pairs
  // Exponents and weights of columns: the pair (row, column) is multiplied by 2^(exponent[row] - exponent[column])
  // times the weight.
  float4 pairs[kChunk / 2];
  float row[kChunk];  // factor of what a row reads of the state
  float out[kChunk];  // of a row of out
  // Factors of what columns add to the state: 16-bit numbers and, because these are coarse, what they miss.
  uint2 columns[kChunk / 2];
  float pass;  // factor of the state
  int pad[3];
};

struct Layout {
  int panel_bytes = kChunk * 128;
  int a, b, c, extra, stage, state, out, gates, barriers, bytes;
  __host__ __device__ Layout(int panels, int warpgroups, int stages, bool outputs, bool with_extra) {
    a = 0;
    b = a + (outputs ? panels * panel_bytes : 0);
    c = b + panels * panel_bytes;
    extra = c + warpgroups * panel_bytes;
    stage = extra + (with_extra ? warpgroups * panel_bytes : 0);
    state = stages * stage;
    out = state + (outputs ? warpgroups * panels * panel_bytes : 0);
    gates = out + (outputs ? warpgroups * panel_bytes : 0);
    barriers = gates + stages * warpgroups * static_cast<int>(sizeof(Gates));
    bytes = barriers + stages * 16 + 1024;
  }
};

CudaStatus launch_sweep(const Sweep& p, void* stream);

}  // namespace weft::kernels::scalar
