// A sequence of GPU work, recorded once and started as one: for decoding, where launching the many small kernels of a step
// takes longer than running them.
#pragma once

#include <c10/core/Device.h>

#include <functional>
#include <memory>

namespace weft {

class CudaGraph {
 public:
  // Records what `body` queues on `device` instead of running it. Everything it reads and writes must stay where it is
  // while the graph is used; what it allocates belongs to the graph. The body must not wait for the device or read from
  // it; run it once before, so that nothing is set up inside. Unsupported, with the reason, when it cannot be recorded.
  CudaGraph(c10::Device device, const std::function<void()>& body);
  // Queues the recorded work on the current stream.
  void replay();

 private:
  std::shared_ptr<void> graph_;
};

}  // namespace weft
