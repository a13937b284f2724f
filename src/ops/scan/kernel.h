// CPU kernels of the diagonal recurrences. All tensors contiguous fp32; a complex number is a pair (re, im).
#pragma once

#include <cstdint>

#include "ops/simd/isa.h"

namespace weft::kernels {

// A task is one sequence of the batch and one block of channels; tasks are numbered batch first.
inline constexpr int64_t kScanBlock = 64;
inline int64_t scan_tasks(int64_t channels) { return (channels + kScanBlock - 1) / kScanBlock; }

enum class ScanKind { real, complex, matrix };

// Of a matrix scan, read [2, 2, E] for the E of a and [2, E] for every other; a is never constant.
struct ScanProblem {
  int64_t batch = 0, tokens = 0, channels = 0;
  ScanKind kind = ScanKind::real;
  bool constant = false;  // a is [E], else [B, T, E]
  const float* a = nullptr;
  const float* b = nullptr;        // [B, T, E]
  const float* initial = nullptr;  // [B, E] or null
  const bool* starts = nullptr;    // [B, T] or null
  float* h = nullptr;              // [B, T, E]
  float* state = nullptr;          // [B, E]
};

struct ScanGradient {
  ScanProblem forward;            // h holds the result of the forward pass; b and state are not read
  const float* dh = nullptr;      // [B, T, E]
  const float* dstate = nullptr;  // [B, E]
  float* da = nullptr;            // as a, but [B, E] when a is constant; or null
  float* db = nullptr;            // [B, T, E]
  float* dinitial = nullptr;      // [B, E] or null
};

// Real and complex; then 2 x 2 matrices.
void scan_forward(simd::Isa isa, const ScanProblem& p, int64_t begin, int64_t end);
void scan_backward(simd::Isa isa, const ScanGradient& p, int64_t begin, int64_t end);
void matrix_scan_forward(simd::Isa isa, const ScanProblem& p, int64_t begin, int64_t end);
void matrix_scan_backward(simd::Isa isa, const ScanGradient& p, int64_t begin, int64_t end);

// Tokens between two states kept for the backward pass, which recomputes the ones in between.
inline constexpr int64_t kSelectiveChunk = 32;
inline int64_t selective_chunks(int64_t tokens) { return (tokens + kSelectiveChunk - 1) / kSelectiveChunk; }

struct SelectiveScanProblem {
  int64_t batch = 0, tokens = 0, channels = 0, states = 0;
  const float* u = nullptr;        // [B, T, E]
  const float* delta = nullptr;    // [B, T, E]
  const float* a_log2 = nullptr;   // [N, E] a / ln 2, so that exp(delta a) = 2^(delta a_log2)
  const float* b = nullptr;        // [B, T, N]
  const float* c = nullptr;        // [B, T, N]
  const float* skip = nullptr;     // [E] or null
  const float* initial = nullptr;  // [B, E, N] or null
  const bool* starts = nullptr;    // [B, T] or null
  float* y = nullptr;              // [B, T, E]
  float* state = nullptr;          // [B, E, N]
  float* saved = nullptr;          // [B, chunks, N, E] state before each chunk; null: not kept
};

struct SelectiveScanGradient {
  SelectiveScanProblem forward;   // y, state and initial are not touched
  const float* dy = nullptr;      // [B, T, E]
  const float* dstate = nullptr;  // [B, E, N]
  float* du = nullptr;            // [B, T, E]
  float* ddelta = nullptr;        // [B, T, E]
  float* da = nullptr;            // [B, N, E]
  float* db = nullptr;            // [blocks, B, T, N] each the sum over one block of channels
  float* dc = nullptr;            // [blocks, B, T, N]
  float* dskip = nullptr;         // [B, E]
  float* dinitial = nullptr;      // [B, E, N]
};

void selective_scan_forward(simd::Isa isa, const SelectiveScanProblem& p, int64_t begin, int64_t end);
void selective_scan_backward(simd::Isa isa, const SelectiveScanGradient& p, int64_t begin, int64_t end);

// One token, `state` [B, E, N] read and written, a_log2 as [E, N]; starts, initial and saved are not read.
void selective_scan_one(simd::Isa isa, const SelectiveScanProblem& p, int64_t begin, int64_t end);

}  // namespace weft::kernels
