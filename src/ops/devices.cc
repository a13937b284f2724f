#include "ops/devices.h"

#include <ATen/Parallel.h>
#include <dlfcn.h>
#include <fmt/format.h>
#include <sched.h>
#include <torch/headeronly/version.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "base/text.h"
#include "ops/cuda_library.h"
#include "ops/kernel_choice.h"

namespace weft {
namespace {

// What follows the colon in the first line of a file in /proc that starts with `key`; "" without one.
std::string proc_value(const char* path, std::string_view key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const auto colon = line.find(':');
    if (!line.starts_with(key) || colon == std::string::npos) continue;
    const auto start = line.find_first_not_of(" \t", colon + 1);
    return start == std::string::npos ? "" : line.substr(start);
  }
  return "";
}

int64_t memory_bytes() {
  const auto text = proc_value("/proc/meminfo", "MemTotal");  // "24038368 kB"
  return text.empty() ? 0 : std::stoll(text) * 1024;
}

// Cores this process may run on, which taskset and containers restrict.
int usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 0;
}

Device cpu() {
  std::vector<std::string> kernels;
  for (const Kernel kernel : cpu_kernels()) kernels.emplace_back(kernel_name(kernel));
  auto name = proc_value("/proc/cpuinfo", "model name");
  return {.kind = "cpu",
          .name = name.empty() ? "unknown processor" : std::move(name),
          .memory_bytes = memory_bytes(),
          .details = fmt::format("{} cores, {} threads, kernels {}", usable_cores(), at::get_num_threads(),
                                 join(kernels))};
}

Device gpu(int index, const CudaDevice& device) {
  return {.kind = fmt::format("cuda:{}", index),
          .name = device.name,
          .memory_bytes = device.memory_bytes,
          .details = fmt::format("compute capability {}.{}, {} multiprocessors, {} L2", device.major,
                                 device.minor, device.multiprocessors, bytes_text(device.l2_bytes))};
}

std::string compiler_text() {
#ifdef __clang__
  return __VERSION__;
#else
  return "g++ " __VERSION__;
#endif
}

// "2.11.0+cu130 in /opt/torch": the version file of the torch package says more than the headers do.
std::string torch_text() {
  Dl_info info;
  if (dladdr(reinterpret_cast<const void*>(&at::get_num_threads), &info) == 0) return TORCH_VERSION;
  const auto folder = std::filesystem::path(info.dli_fname).parent_path().parent_path();
  std::ifstream file(folder / "version.py");
  std::string version = TORCH_VERSION;
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("__version__ = '")) version = line.substr(15, line.size() - 16);
  const bool same = version.starts_with(TORCH_VERSION);
  return fmt::format("{}{} in {}", version, same ? "" : " (built with " TORCH_VERSION ")", folder.string());
}

}  // namespace

std::vector<Device> devices() {
  std::vector<Device> list = {cpu()};
  const auto& gpus = load_cuda_library().devices;
  for (size_t i = 0; i < gpus.size(); ++i) list.push_back(gpu(static_cast<int>(i), gpus[i]));
  return list;
}

std::string devices_report() {
  const auto list = devices();
  size_t width = 0;
  for (const auto& device : list) width = std::max(width, device.name.size());
  std::string report;
  for (const auto& device : list)
    report += fmt::format("{:<8}{:<{}}  {:>10}  {}\n", device.kind, device.name, width,
                          bytes_text(device.memory_bytes), device.details);
  return report + fmt::format("{:<8}{}\n", "CUDA", load_cuda_library().status);
}

std::string version_report() {
  return fmt::format("weft      {}\nbuild     {}\ncompiler  {}\ntorch     {}\nCUDA      {}\n", WEFT_VERSION,
                     WEFT_BUILD, compiler_text(), torch_text(), load_cuda_library().status);
}

}  // namespace weft
