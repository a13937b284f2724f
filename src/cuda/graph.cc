#include "cuda/graph.h"

#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>

#include <memory>
#include <string>

namespace weft {
namespace {

// The text lives until the next failure in this thread.
const char* keep(const std::exception& error) {
  thread_local std::string text;
  text = error.what();
  text.resize(std::min(text.find('\n'), text.size()));
  return text.c_str();
}

}  // namespace

const char* record_graph(int device, bool (*body)(void*), void* context, void** graph) {
  try {
    const auto index = static_cast<c10::DeviceIndex>(device);
    const c10::cuda::CUDAGuard on_device(index);
    c10::cuda::device_synchronize();
    const c10::cuda::CUDAStreamGuard on_stream(c10::cuda::getStreamFromPool(false, index));
    auto recorded = std::make_unique<at::cuda::CUDAGraph>();
    recorded->capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);
    const bool whole = body(context);
    try {
      recorded->capture_end();
    } catch (...) {  // the recording was broken off: the allocator must hear of it all the same
      c10::cuda::CUDACachingAllocator::endAllocateToPool(index, recorded->pool());
      cudaGetLastError();
      throw;
    }
    if (whole) *graph = recorded.release();
    return nullptr;
  } catch (const std::exception& error) {
    return keep(error);
  }
}

const char* replay_graph(void* graph) {
  try {
    static_cast<at::cuda::CUDAGraph*>(graph)->replay();
    return nullptr;
  } catch (const std::exception& error) {
    return keep(error);
  }
}

void drop_graph(void* graph) { delete static_cast<at::cuda::CUDAGraph*>(graph); }

}  // namespace weft
