// Loads libweft_cuda.so, which holds all CUDA kernels and pulls in libtorch_cuda, at run time: one build
// serves machines with and without a GPU, and a machine without one starts in half the time.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ops/cuda_interface.h"

namespace weft {

enum class CudaState {
  not_built,   // there is no libweft_cuda.so
  no_driver,   // no libcuda.so.1, so the library was not opened
  not_loaded,  // a library that it needs is missing, or it belongs to another build
  no_device,   // loaded, but the driver offers no GPU
  ready
};

struct CudaLibrary {
  CudaState state = CudaState::not_built;
  std::string status = {};           // one sentence for people: what is used, or why not and what to do
  const CudaTable* table = nullptr;  // not null in the states no_device and ready
  std::vector<CudaDevice> devices = {};
  int driver_version = 0;  // 13000 for 13.0
};

// Opens the library that lies beside libweft.so, at the first call; later calls return what the first found.
// Call it first thing in main: whatever asks torch about CUDA before (at::hasCUDA, at::manual_seed) makes
// torch believe for good that there is none. Never throws for a missing library, driver or device.
const CudaLibrary& load_cuda_library();

// Opens the library at `path` whether or not there is a driver. For load_cuda_library and tests.
CudaLibrary open_cuda_library(const std::string& path);

// Bytes read plus bytes written a second, of copying `bytes` (rounded down to a multiple of 16) between two
// buffers on a GPU, median of 20. Takes memory for both buffers. Unsupported without a GPU, InputError for a
// device that is not there.
double cuda_copy_bandwidth(int device = 0, int64_t bytes = int64_t{1} << 30);

// Queues a kernel on `stream`, a cudaStream_t of the device, that does nothing for `seconds`: for timing what comes behind
// it without the time of launching. Unsupported without a GPU.
void cuda_keep_busy(double seconds, int device, void* stream);

}  // namespace weft
