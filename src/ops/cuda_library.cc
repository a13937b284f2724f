#include "ops/cuda_library.h"

#include <dlfcn.h>

#include <filesystem>

#include "base/error.h"

namespace weft {
namespace {

constexpr const char* kFileName = "libweft_cuda.so";

// The folder of the library (or program) that this file was linked into. A bare name would be looked for
// along the RUNPATH of whoever calls dlopen.
std::filesystem::path own_folder() {
  static const char here =
      0;  // of this object for sure; a function's address may be that of a stub in the program
  Dl_info info;
  invariant(dladdr(&here, &info) != 0, "the dynamic linker does not know our own library");
  return std::filesystem::absolute(info.dli_fname).parent_path();
}

bool has_driver() {
  void* driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
  return driver != nullptr;  // stays open: CUDA will want it next
}

std::string version_text(int version) { return fmt::format("{}.{}", version / 1000, version % 1000 / 10); }

CudaLibrary not_loaded(const std::string& why) {
  return {.state = CudaState::not_loaded, .status = "not loaded: " + why};
}

// "libcufile.so.0: cannot open shared object file: ..." means that the torch in use came without NVIDIA's
// packages.
std::string explain(const std::string& dl_error) {
  const auto end = dl_error.find(": cannot open shared object file");
  if (end == std::string::npos) return dl_error;
  const auto library = dl_error.substr(0, end);
  return fmt::format(
      "{} is missing; the torch in use has no CUDA packages. Install torch with all it depends on "
      "and point WEFT_TORCH at it",
      library);
}

void find_devices(CudaLibrary& library) {
  int count = 0;
  const char* why = library.table->discover(&count, &library.driver_version);
  for (int i = 0; i < count; ++i) {
    CudaDevice device{};
    if (const char* failed = library.table->describe(i, &device)) {
      library.state = CudaState::no_device;
      library.status = fmt::format("loaded, but GPU {} does not answer: {}", i, failed);
      return;
    }
    library.devices.push_back(device);
  }
  const auto runtime = version_text(library.table->runtime_version);
  if (count == 0) {
    library.state = CudaState::no_device;
    library.status =
        library.driver_version == 0
            ? fmt::format("loaded (CUDA {}), but this machine has no NVIDIA driver", runtime)
            : fmt::format("loaded (CUDA {}, driver for CUDA {}), but no GPU can be used: {}", runtime,
                          version_text(library.driver_version), why ? why : "the driver offers none");
    return;
  }
  library.state = CudaState::ready;
  library.status = fmt::format("loaded, CUDA {}, driver for CUDA {}, {} GPU{}", runtime,
                               version_text(library.driver_version), count, count == 1 ? "" : "s");
}

CudaLibrary load_beside_us() {
  const auto path = own_folder() / kFileName;
  if (std::filesystem::exists(path) && !has_driver())
    return {.state = CudaState::no_driver,
            .status = "not used: this machine has no NVIDIA driver (libcuda.so.1)"};
  return open_cuda_library(path.string());
}

}  // namespace

CudaLibrary open_cuda_library(const std::string& path) {
  if (!std::filesystem::exists(path))
    return {.state = CudaState::not_built,
            .status = fmt::format("not built: there is no {}; ./bootstrap build --cuda makes it", path)};
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) return not_loaded(explain(dlerror()));
  const auto entry = reinterpret_cast<WeftCudaEntry>(dlsym(handle, "weft_cuda_table"));
  if (!entry) return not_loaded(path + " is not a CUDA library of weft");
  const CudaTable* table = entry();
  if (table->abi != kCudaAbi)
    return not_loaded(fmt::format("{} is of another build (interface {}, expected {}); build both together",
                                  path, table->abi, kCudaAbi));
  CudaLibrary library{.table = table};
  table->install_kernels();
  find_devices(library);
  return library;
}

const CudaLibrary& load_cuda_library() {
  static const CudaLibrary library = load_beside_us();
  return library;
}

double cuda_copy_bandwidth(int device, int64_t bytes) {
  const auto& library = load_cuda_library();
  supported(library.state == CudaState::ready, "copy bandwidth of a GPU: {}", library.status);
  require(device >= 0 && device < static_cast<int>(library.devices.size()),
          "GPU {} is not there; this machine has {}", device, library.devices.size());
  require(bytes >= 16, "copy bandwidth: {} bytes are too few, at least 16", bytes);
  bytes -= bytes % 16;
  double seconds = 0;
  const char* failed = library.table->time_copy(device, bytes, 20, &seconds);
  supported(failed == nullptr, "copy bandwidth of GPU {}: {}", device, failed ? failed : "");
  return 2.0 * static_cast<double>(bytes) / seconds;
}

void cuda_keep_busy(double seconds, int device, void* stream) {
  const auto& library = load_cuda_library();
  supported(library.state == CudaState::ready, "keeping a GPU busy: {}", library.status);
  const char* failed = library.table->keep_busy(device, seconds, stream);
  supported(failed == nullptr, "keeping GPU {} busy: {}", device, failed ? failed : "");
}

}  // namespace weft
