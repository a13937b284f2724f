// Scratch memory of a CPU kernel.
#pragma once

#include <cstddef>
#include <new>

namespace weft::simd {

// `count` floats on a cache line of their own, set to zero.
class AlignedFloats {
 public:
  explicit AlignedFloats(size_t count)
      : data_(static_cast<float*>(::operator new[]((count + 1) * sizeof(float), std::align_val_t{64}))) {
    for (size_t i = 0; i < count; ++i) data_[i] = 0;
  }
  ~AlignedFloats() { ::operator delete[](data_, std::align_val_t{64}); }
  AlignedFloats(const AlignedFloats&) = delete;
  AlignedFloats& operator=(const AlignedFloats&) = delete;
  float* get() const { return data_; }

 private:
  float* data_;
};

}  // namespace weft::simd
