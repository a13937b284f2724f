#include "ops/cuda_graph.h"

#include <exception>

#include "base/error.h"
#include "ops/cuda_library.h"

namespace weft {
namespace {

const CudaTable& table() {
  const auto& library = load_cuda_library();
  supported(library.state == CudaState::ready, "a CUDA graph: {}", library.status);
  return *library.table;
}

struct Body {
  const std::function<void()>& run;
  std::exception_ptr error = {};
};

// Exceptions do not cross the library's C functions.
bool run_body(void* context) {
  auto* body = static_cast<Body*>(context);
  try {
    body->run();
    return true;
  } catch (...) {
    body->error = std::current_exception();
    return false;
  }
}

std::string reason_of(const std::exception_ptr& error, const char* failed) {
  if (!error) return failed;
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& e) {
    const std::string text = e.what();
    return text.substr(0, text.find('\n'));
  }
}

}  // namespace

CudaGraph::CudaGraph(c10::Device device, const std::function<void()>& body) {
  const auto& cuda = table();
  Body context{body};
  void* graph = nullptr;
  const char* failed = cuda.record_graph(device.index(), run_body, &context, &graph);
  supported(!failed && !context.error, "the work cannot be recorded as a CUDA graph: {}",
            failed || context.error ? reason_of(context.error, failed) : "");
  graph_ = std::shared_ptr<void>(graph, cuda.drop_graph);
}

void CudaGraph::replay() {
  const char* failed = table().replay_graph(graph_.get());
  if (failed) throw Error(fmt::format("a CUDA graph could not be started: {}", failed));
}

}  // namespace weft
