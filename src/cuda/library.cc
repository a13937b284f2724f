// The entry of libweft_cuda.so: which devices there are, how fast their memory is, and the kernels of ops.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "cuda/copy.h"
#include "cuda/graph.h"
#include "cuda/install.h"
#include "ops/cuda_interface.h"

namespace {

using weft::CudaDevice;

const char* text(cudaError_t error) { return error == cudaSuccess ? nullptr : cudaGetErrorString(error); }

const char* discover(int* devices, int* driver_version) {
  *devices = 0;
  *driver_version = 0;
  cudaDriverGetVersion(driver_version);
  return text(cudaGetDeviceCount(devices));
}

const char* describe(int device, CudaDevice* out) {
  cudaDeviceProp properties;
  if (const char* failed = text(cudaGetDeviceProperties(&properties, device))) return failed;
  std::copy(std::begin(properties.name), std::end(properties.name), out->name);
  out->major = properties.major;
  out->minor = properties.minor;
  out->multiprocessors = properties.multiProcessorCount;
  out->memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  out->l2_bytes = properties.l2CacheSize;
  return nullptr;
}

struct Free {
  void operator()(void* p) const { cudaFree(p); }
};
using Buffer = std::unique_ptr<void, Free>;

struct Event {
  cudaEvent_t event = nullptr;
  Event() { cudaEventCreate(&event); }
  ~Event() { cudaEventDestroy(event); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
};

cudaError_t allocate(int64_t bytes, Buffer& out) {
  void* memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, static_cast<size_t>(bytes));
  out.reset(memory);
  return error;
}

// Milliseconds of each of `repeats` copies, after one that is not measured.
cudaError_t copy_times(void* to, const void* from, int64_t bytes, int multiprocessors,
                       std::vector<float>& times) {
  Event start, stop;
  for (size_t i = 0; i <= times.size(); ++i) {
    cudaEventRecord(start.event);
    if (const auto error = weft::kernels::copy(to, from, bytes, multiprocessors, nullptr)) return error;
    cudaEventRecord(stop.event);
    if (const auto error = cudaEventSynchronize(stop.event)) return error;
    if (i == 0) continue;
    if (const auto error = cudaEventElapsedTime(&times[i - 1], start.event, stop.event)) return error;
  }
  return cudaSuccess;
}

const char* time_copy(int device, int64_t bytes, int repeats, double* seconds) {
  CudaDevice facts;
  if (const char* failed = describe(device, &facts)) return failed;
  int before = 0;
  cudaGetDevice(&before);
  if (const char* failed = text(cudaSetDevice(device))) return failed;
  Buffer to, from;
  auto error = allocate(bytes, to);
  if (error == cudaSuccess) error = allocate(bytes, from);
  if (error == cudaSuccess) error = cudaMemset(from.get(), 1, static_cast<size_t>(bytes));
  std::vector<float> times(static_cast<size_t>(std::max(repeats, 1)));
  if (error == cudaSuccess) error = copy_times(to.get(), from.get(), bytes, facts.multiprocessors, times);
  cudaSetDevice(before);
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  *seconds = times[times.size() / 2] * 1e-3;
  return text(error);
}

const char* keep_busy(int device, double seconds, void* stream) {
  int before = 0;
  cudaGetDevice(&before);
  if (const char* failed = text(cudaSetDevice(device))) return failed;
  const auto error = weft::kernels::keep_busy(seconds, static_cast<cudaStream_t>(stream));
  cudaSetDevice(before);
  return text(error);
}

}  // namespace

extern "C" const weft::CudaTable* weft_cuda_table() {
  static const weft::CudaTable table = {
      .abi = weft::kCudaAbi,
      .runtime_version = CUDART_VERSION,
      .discover = discover,
      .describe = describe,
      .time_copy = time_copy,
      .keep_busy = keep_busy,
      .record_graph = weft::record_graph,
      .replay_graph = weft::replay_graph,
      .drop_graph = weft::drop_graph,
      .install_kernels = weft::kernels::install_all,
  };
  return &table;
}
