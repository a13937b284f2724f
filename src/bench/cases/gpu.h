// Shapes that fill a GPU: each family at a headline shape, then the same number of tokens in other lengths, widths and
// documents. Peers run in a process of their own (bench/peers/gpu_ops.py).
#pragma once

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <fmt/format.h>

#include <string>
#include <vector>

#include "bench/op_case.h"

namespace weft::bench {

// Random tensors made on the device itself: those of the headline shapes would take seconds to make on the CPU.
struct Maker {
  at::ScalarType dtype;
  at::Device device;

  at::TensorOptions wide() const { return at::TensorOptions(at::kFloat).device(device); }
  at::Tensor normal(at::IntArrayRef sizes, double scale = 1) const {
    return (at::randn(sizes, wide()) * scale).to(dtype);
  }
  // In [low, high], fp32.
  at::Tensor uniform(at::IntArrayRef sizes, double low, double high) const {
    return at::rand(sizes, wide()) * (high - low) + low;
  }
};

struct Shape {
  int64_t batch, tokens, heads, width;
  bool documents = false;

  bool is_headline() const { return batch == 8 && tokens == 2048 && !documents; }
};

constexpr int64_t kDocuments = 8;

// True where one of eight documents of uneven lengths begins.
inline at::Tensor document_starts(const Shape& s, at::Device device) {
  auto starts = at::zeros({s.batch, s.tokens}, at::kBool);
  for (int64_t i = 0; i < kDocuments; ++i)
    starts.select(1, s.tokens * i * i / (kDocuments * kDocuments)).fill_(true);
  return starts.to(device);
}

// 16,384 tokens of 16 heads of 128, cut otherwise; 32,768 in the longest.
inline std::vector<Shape> lengths(int64_t heads, int64_t width) {
  return {{8, 2048, heads, width},
          {32, 512, heads, width},
          {2, 8192, heads, width},
          {1, 32768, heads, width},
          {1, 16384, heads, width, true}};
}

inline std::string shape_text(const Shape& s) {
  return fmt::format("{}x{}, {}x{}{}", s.batch, s.tokens, s.heads, s.width, s.documents ? ", documents" : "");
}

}  // namespace weft::bench
