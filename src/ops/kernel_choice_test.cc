#include "ops/kernel_choice.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace weft {
namespace {

const Kernel kAll[] = {Kernel::reference, Kernel::scalar, Kernel::avx2, Kernel::avx512, Kernel::cuda};

TEST(KernelChoice, NamesAndKernelsAgree) {
  for (const Kernel kernel : kAll) EXPECT_EQ(kernel_from_name(kernel_name(kernel)), kernel);
  EXPECT_EQ(kernel_from_name(""), std::nullopt);
}

TEST(KernelChoice, UnknownNameListsTheKnownOnes) {
  try {
    kernel_from_name("sse9");
    FAIL() << "no error";
  } catch (const InputError& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("'sse9'"), std::string::npos) << text;
    for (const Kernel kernel : kAll) EXPECT_NE(text.find(kernel_name(kernel)), std::string::npos) << text;
  }
}

TEST(KernelChoice, CpuKernelsEndInScalar) {
  ASSERT_FALSE(cpu_kernels().empty());
  EXPECT_EQ(cpu_kernels().back(), Kernel::scalar);
  for (const Kernel kernel : cpu_kernels())
    EXPECT_TRUE(kernel != Kernel::reference && kernel != Kernel::cuda);
}

TEST(KernelChoice, ForcingLastsForItsScope) {
  const Kernel before = choose_kernel(at::kCPU, at::kFloat);
  for (const Kernel kernel : cpu_kernels()) {
    const ForceKernel force(kernel);
    EXPECT_EQ(choose_kernel(at::kCPU, at::kFloat), kernel);
    EXPECT_EQ(choose_kernel(at::kCPU, at::kBFloat16), kernel);
    {
      const ForceKernel inner(Kernel::reference);
      EXPECT_EQ(choose_kernel(at::kCPU, at::kFloat), Kernel::reference);
    }
    EXPECT_EQ(choose_kernel(at::kCPU, at::kFloat), kernel);
  }
  EXPECT_EQ(choose_kernel(at::kCPU, at::kFloat), before);
}

TEST(KernelChoice, TypesWithoutKernelsGoToTheReference) {
  for (const Kernel kernel : cpu_kernels()) {
    const ForceKernel force(kernel);
    EXPECT_EQ(choose_kernel(at::kCPU, at::kDouble), Kernel::reference);
    EXPECT_EQ(choose_kernel(at::kCPU, at::kLong), Kernel::reference);
    EXPECT_EQ(choose_kernel(at::kMeta, at::kFloat), Kernel::reference);
  }
}

TEST(KernelChoice, CudaForcedOnACpuTensorIsUnsupported) {
  const ForceKernel force(Kernel::cuda);
  EXPECT_THROW(choose_kernel(at::kCPU, at::kFloat), Unsupported);
}

}  // namespace
}  // namespace weft
