#include "cli/loading.h"

#include <c10/core/Device.h>

#include <charconv>

#include "base/error.h"
#include "cli/output.h"
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

const Tokenizer& tokenizer_of(const LoadedModel& loaded) {
  require(loaded.tokenizer != nullptr,
          "{}: the model came without a tokenizer (no tokenizer.json); give token ids with --ids where the "
          "command has "
          "it, or put the tokenizer's files beside the weights",
          loaded.path);
  return *loaded.tokenizer;
}

std::vector<int64_t> parse_ids(const std::string& text) {
  std::string list = text;
  std::erase_if(list, [](char c) { return c == ' ' || c == '[' || c == ']'; });
  require(!list.empty(), "--ids is missing; give token ids, as in --ids 5,17,3");
  std::vector<int64_t> ids;
  for (size_t begin = 0; begin <= list.size();) {
    const size_t end = std::min(list.find(',', begin), list.size());
    const auto word = list.substr(begin, end - begin);
    int64_t id = 0;
    const auto [rest, problem] = std::from_chars(word.data(), word.data() + word.size(), id);
    require(problem == std::errc() && rest == word.data() + word.size(),
            "--ids: '{}' is not a token id; expected 5,17,3 or [5, 17, 3]", word);
    ids.push_back(id);
    begin = end + 1;
  }
  return ids;
}

LoadedModel open_model(const std::string& path, const std::string& dtype, const Session& session) {
  const auto type = dtype_named(dtype);
  const auto device = session_device(session);
  auto loaded = load_model(path);
  loaded.model->to(type);
  loaded.model->to(device);
  loaded.model->set_compute_dtype(type);
  loaded.model->set_training(false);
  for (const auto& line : loaded.notes) note(line);
  return loaded;
}

}  // namespace weft::cli
