#include "cli/loading.h"

#include <c10/core/Device.h>

#include "base/error.h"
#include "ops/cuda_library.h"

namespace weft::cli {

at::ScalarType dtype_named(const std::string& name) {
  if (name == "fp32") return at::kFloat;
  if (name == "bf16") return at::kBFloat16;
  if (name == "fp16") return at::kHalf;
  if (name == "fp64") return at::kDouble;
  throw InputError(fmt::format("--dtype {}: must be one of fp32, bf16, fp16, fp64", name));
}

at::Device session_device(const Session& session) {
  const auto& cuda = load_cuda_library();
  const bool ready = cuda.state == CudaState::ready;
  if (session.device == "auto") return ready ? at::Device(at::kCUDA, 0) : at::Device(at::kCPU);
  if (session.device == "cpu") return at::kCPU;
  int64_t index = 0;
  if (session.device.starts_with("cuda:")) {
    const auto digits = session.device.substr(5);
    require(
        !digits.empty() && digits.size() <= 3 && digits.find_first_not_of("0123456789") == std::string::npos,
        "--device {}: expected auto, cpu, cuda or cuda:N", session.device);
    index = std::stoll(digits);
  } else {
    require(session.device == "cuda", "--device {}: expected auto, cpu, cuda or cuda:N", session.device);
  }
  supported(ready, "--device {}: {}", session.device, cuda.status);
  const auto count = static_cast<int64_t>(cuda.devices.size());
  require(index < count, "--device {}: this machine has {} GPU{}, counted from 0", session.device, count,
          count == 1 ? "" : "s");
  return at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(index));
}

LoadedModel open_model(const std::string& path, const std::string& dtype, const Session& session) {
  const auto type = dtype_named(dtype);
  const auto device = session_device(session);
  auto loaded = load_model(path);
  loaded.model->to(type);
  loaded.model->to(device);
  loaded.model->set_compute_dtype(type);
  loaded.model->set_training(false);
  return loaded;
}

}  // namespace weft::cli
