// Which implementation of an op runs. Every family has a `reference` (plain ATen: any device and float type,
// the specification) and CPU kernels for several instruction sets from one source; CUDA kernels are
// registered when libweft_cuda.so is loaded. WEFT_KERNEL=reference|scalar|avx2|avx512|cuda forces one by
// name, for tests.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace weft {

enum class Kernel { reference, scalar, avx2, avx512, cuda };

std::string_view kernel_name(Kernel kernel);

// The kernel that a value of WEFT_KERNEL stands for; none when empty. InputError lists the names.
std::optional<Kernel> kernel_from_name(std::string_view name);

// CPU instruction sets that this machine can run, best first; always ends in scalar.
const std::vector<Kernel>& cpu_kernels();

// All kernels of this machine, for tests and checks: those of the CPU, and `cuda` where a GPU can be used; only the
// forced one when there is one.
std::vector<Kernel> runnable_kernels();

// Where tensors must lie for a kernel: CUDA for `cuda`, else the CPU.
c10::DeviceType device_of(Kernel kernel);

// The kernel that an op uses for tensors like `x`. CPU and CUDA kernels take fp32, bf16 and fp16;
// fp64, other devices and integers go to the reference, as does a family that has no CUDA kernel. Throws Unsupported when
// the forced kernel cannot run here, InputError when WEFT_KERNEL names none.
Kernel choose_kernel(const at::Tensor& x);
Kernel choose_kernel(c10::DeviceType device, c10::ScalarType dtype);

// What WEFT_KERNEL or ForceKernel says, for ops whose fast form also runs in fp64 and on any device.
std::optional<Kernel> forced_kernel();

// Forces a kernel while in scope, over WEFT_KERNEL; for tests and benchmarks. Not for use from several
// threads.
class ForceKernel {
 public:
  explicit ForceKernel(Kernel kernel);
  ~ForceKernel();
  ForceKernel(const ForceKernel&) = delete;
  ForceKernel& operator=(const ForceKernel&) = delete;

 private:
  std::optional<Kernel> before_;
};

}  // namespace weft
