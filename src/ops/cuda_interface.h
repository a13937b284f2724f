// What libweft.so and libweft_cuda.so agree on: plain C structs, so that a library of another build is
// recognised before anything of it is used. No torch.
#pragma once

#include <cstdint>

namespace weft {

// Goes up whenever CudaTable or the launch functions of an op change.
constexpr int kCudaAbi = 4;

struct CudaDevice {
  char name[256];
  int major, minor;  // compute capability
  int multiprocessors;
  int64_t memory_bytes, l2_bytes;
};

// Functions return nullptr, or a text that says what failed and lives as long as the library.
struct CudaTable {
  int abi;              // kCudaAbi of the sources it was built from; first for good
  int runtime_version;  // of the CUDA runtime, 13000 for 13.0
  // Number of devices and version of the driver (0: no driver). Without a driver or device the count is 0 and
  // the text says why.
  const char* (*discover)(int* devices, int* driver_version);
  const char* (*describe)(int device, CudaDevice* out);
  // Copies `bytes` (a multiple of 16) from one buffer of the device to another, `repeats` times after a first
  // unmeasured one; gives the seconds of the median copy.
  const char* (*time_copy)(int device, int64_t bytes, int repeats, double* seconds);
  // Queues a kernel on `stream` that does nothing for `seconds`.
  const char* (*keep_busy)(int device, double seconds, void* stream);
  // CUDA graphs, see cuda_graph.h. Recording runs body(context) on a stream of its own; false from it, or a text, and there
  // is no graph. Replaying uses torch's current stream.
  const char* (*record_graph)(int device, bool (*body)(void*), void* context, void** graph);
  const char* (*replay_graph)(void* graph);
  void (*drop_graph)(void* graph);
  // Hands the tables of kernels to the ops; called once, when the library is found to be of this build.
  void (*install_kernels)();
};

}  // namespace weft

extern "C" {
// The one symbol that libweft.so looks up.
using WeftCudaEntry = const weft::CudaTable* (*)();
}
