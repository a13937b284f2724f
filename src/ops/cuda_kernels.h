// How ops reach their CUDA kernels. A family's kernels are a struct of function pointers (in its kernel_cuda.h,
// without torch); libweft_cuda.so installs it when it is loaded, so that libweft.so needs no CUDA to be linked.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>

#include "base/error.h"

namespace weft {

// The kernels of one family. Null until libweft_cuda.so is loaded.
template <class Table>
class CudaKernels {
 public:
  static const Table* get() { return table_; }
  static void install(const Table& table) { table_ = &table; }

 private:
  inline static const Table* table_ = nullptr;
};

// Where a kernel runs: the device of `x`, which is the current one in this scope, and torch's current stream on it.
class CudaLaunch {
 public:
  explicit CudaLaunch(const at::Tensor& x);
  void* stream() const { return stream_; }  // a cudaStream_t
  int multiprocessors() const { return multiprocessors_; }
  int capability() const { return capability_; }  // 90 for 9.0

 private:
  c10::DeviceGuard guard_;
  void* stream_;
  int multiprocessors_, capability_;
};

// Throws Error when a launch function of a table returned a text.
inline void check_launch(const char* op, const char* failed) {
  if (failed) [[unlikely]]
    throw Error(fmt::format("{}: the CUDA kernel could not be started: {}", op, failed));
}

}  // namespace weft
