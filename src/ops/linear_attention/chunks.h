// How the tokens of a batch are cut into chunks; private to the folder.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "ops/linear_attention/kernel.h"

namespace weft::ops {

// The chunks of every sequence: at most `chunk` tokens, and a document start always begins one, so that
// inside a chunk all tokens see each other.
struct ChunkTable {
  std::vector<int64_t> begin;   // first tokens; each sequence's list is closed by T
  std::vector<uint8_t> fresh;   // as begin: a document starts there
  std::vector<int64_t> offset;  // [B + 1] where each sequence's list begins

  // starts: [B, T] bool on the CPU, or undefined.
  ChunkTable(int64_t batch, int64_t tokens, int64_t chunk, const at::Tensor& starts);
  void use(kernels::LinearAttentionProblem& p) const {
    p.chunk_begin = begin.data(), p.chunk_offset = offset.data(), p.fresh = fresh.data();
  }
  int64_t chunks() const { return static_cast<int64_t>(begin.size() + 1 - offset.size()); }
};

}  // namespace weft::ops
