#include "ops/kernel_choice.h"

#include <array>
#include <cstdlib>

#include "base/error.h"
#include "base/text.h"
#include "ops/cuda_library.h"
#include "ops/simd/isa.h"

namespace weft {
namespace {

constexpr std::array<std::string_view, 5> kNames = {"reference", "scalar", "avx2", "avx512", "cuda"};

std::optional<Kernel>& forced() {
  static std::optional<Kernel> kernel = []() -> std::optional<Kernel> {
    const char* name = std::getenv("WEFT_KERNEL");
    return name ? kernel_from_name(name) : std::nullopt;
  }();
  return kernel;
}

bool has_cpu_kernel(Kernel kernel) {
  for (const Kernel k : cpu_kernels())
    if (k == kernel) return true;
  return false;
}

bool has_cuda_kernels() { return load_cuda_library().state == CudaState::ready; }

}  // namespace

std::string_view kernel_name(Kernel kernel) { return kNames[static_cast<size_t>(kernel)]; }

std::optional<Kernel> kernel_from_name(std::string_view name) {
  if (name.empty()) return std::nullopt;
  for (size_t i = 0; i < kNames.size(); ++i)
    if (kNames[i] == name) return static_cast<Kernel>(i);
  throw InputError(
      fmt::format("WEFT_KERNEL: '{}' is not a kernel; expected one of {}", name, fmt::join(kNames, ", ")));
}

const std::vector<Kernel>& cpu_kernels() {
  static const std::vector<Kernel> kernels = [] {
    std::vector<Kernel> list;
    if (simd::isa_runs_here(simd::Isa::avx512)) list.push_back(Kernel::avx512);
    if (simd::isa_runs_here(simd::Isa::avx2)) list.push_back(Kernel::avx2);
    list.push_back(Kernel::scalar);
    return list;
  }();
  return kernels;
}

Kernel choose_kernel(const at::Tensor& x) { return choose_kernel(x.device().type(), x.scalar_type()); }

Kernel choose_kernel(c10::DeviceType device, c10::ScalarType dtype) {
  const bool kernel_dtype = dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf;
  const bool cpu = device == at::kCPU && kernel_dtype;
  const bool cuda = device == at::kCUDA && kernel_dtype && has_cuda_kernels();
  const auto& choice = forced();
  if (!choice) return cpu ? cpu_kernels().front() : cuda ? Kernel::cuda : Kernel::reference;
  if (*choice == Kernel::cuda) {
    supported(device == at::kCUDA || !kernel_dtype,
              "WEFT_KERNEL=cuda: the tensor is on {}, where no CUDA kernel runs; say --device cuda",
              c10::DeviceTypeName(device, true));
    supported(!kernel_dtype || has_cuda_kernels(), "WEFT_KERNEL=cuda: libweft_cuda.so is {}",
              load_cuda_library().status);
    return kernel_dtype ? Kernel::cuda : Kernel::reference;
  }
  if (*choice == Kernel::reference || !cpu) return Kernel::reference;
  supported(has_cpu_kernel(*choice), "WEFT_KERNEL={}: this processor cannot run it; it has {}",
            kernel_name(*choice), kernel_name(cpu_kernels().front()));
  return *choice;
}

std::vector<Kernel> runnable_kernels() {
  if (forced()) return {*forced()};
  auto kernels = cpu_kernels();
  if (has_cuda_kernels()) kernels.push_back(Kernel::cuda);
  return kernels;
}

c10::DeviceType device_of(Kernel kernel) { return kernel == Kernel::cuda ? at::kCUDA : at::kCPU; }

std::optional<Kernel> forced_kernel() { return forced(); }

ForceKernel::ForceKernel(Kernel kernel) : before_(forced()) { forced() = kernel; }
ForceKernel::~ForceKernel() { forced() = before_; }

}  // namespace weft
