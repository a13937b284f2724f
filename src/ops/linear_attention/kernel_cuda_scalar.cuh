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
  CudaRows out_rows, extra_rows;  // what the maps of out and extra describe
  float *dots = nullptr, *off_diagonal = nullptr;
  __host__ __device__ bool has_dots() const { return dots || off_diagonal; }
  States initial, final;
  // [B, H, slices, checkpoints, panels * 64 * 64] in the type of c: written by the sweep, or (reversed) multiplied
  // elementwise with the state there and summed: products[B, H, slices, checkpoints, 4].
  void* checkpoints = nullptr;
  float* products = nullptr;
};

// How a block shares out its work: warpgroups with `slices` slices of a head each, `panels` of 64 columns to a row of a
// and b. With one slice the warpgroups share a and b; with two, c and extra.
struct Shape {
  int panels = 1, warpgroups = 1, slices = 1;
  bool operator==(const Shape&) const = default;
  // Whether warpgroups of their own, the readers, compute outputs. Else those that carry the state do, all in one.
  __host__ __device__ constexpr bool split() const { return panels >= 2 && warpgroups == 2; }
  // Too wide for outputs and extra to pass through shared memory, or for a gap where it begins.
  __host__ __device__ constexpr bool wide() const { return panels == 4 && split(); }
  __host__ __device__ constexpr int readers() const { return !split() ? 0 : wide() ? 1 : 2; }
};

struct Sweep {
  Role roles[3];
  int num_roles = 0;
  bool interleaved = false;             // the blocks of roles 0 and 1 alternate, because they read the same
  int blocks = 0, multiprocessors = 1;  // pieces of work
  bool outputs = true, extra = false;   // extra: some role reads it
  CudaType type = CudaType::bf16;
  Shape shape;
  int stages = 2;
  int batch = 0, heads = 0, tokens = 0, chunks = 0, segments = 1, segment_chunks = 0;
  int first_segment = 0;                          // blocks are for `segments` segments from this one on
  int checkpoint_shift = 0, num_checkpoints = 0;  // one for every 2^checkpoint_shift chunks
  float scale = 1;
  CudaRows log_decay, write;  // null data: none
  const uint8_t* starts = nullptr;
  // Whether there is a checkpoint behind a chunk.
  __device__ bool ends_window(int chunk) const {
    return (chunk + 1) >> checkpoint_shift > chunk >> checkpoint_shift || chunk == chunks - 1;
  }
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
  int gate_sets, a, b, c, extra, stage, state, out, gates, barriers, bytes;
  __host__ __device__ Layout(Shape shape, int stages, bool outputs, bool with_extra) {
    const bool wide = shape.wide();
    const int rows = shape.panels * (shape.slices > 1 ? shape.warpgroups : 1) * panel_bytes;
    const int columns = (shape.slices > 1 ? shape.slices : shape.warpgroups) * panel_bytes;
    const int all = shape.warpgroups * shape.slices * panel_bytes;
    gate_sets = wide ? 1 : shape.warpgroups;
    a = 0;
    b = a + (outputs ? rows : 0);
    c = b + rows;
    extra = c + columns;
    stage = extra + (with_extra && !shape.split() ? columns : 0);
    state = stages * stage;
    out = state + (outputs ? all * shape.panels : 0);
    gates = out + (!outputs || wide ? 0 : shape.split() ? shape.readers() * columns : all);
    barriers = gates + stages * gate_sets * static_cast<int>(sizeof(Gates));
    const int num_barriers = 2 * stages + shape.warpgroups * (1 + shape.readers()) + shape.readers();
    bytes = barriers + num_barriers * 8 + (wide ? 0 : 1024);
  }
};

CudaStatus launch_sweep(const Sweep& p, void* stream);

}  // namespace weft::kernels::scalar
