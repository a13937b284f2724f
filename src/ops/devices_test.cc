#include "ops/devices.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "ops/cuda_library.h"
#include "ops/kernel_choice.h"

namespace weft {
namespace {

TEST(Devices, CpuComesFirstWithItsMemoryAndKernels) {
  const auto list = devices();
  ASSERT_FALSE(list.empty());
  EXPECT_EQ(list[0].kind, "cpu");
  EXPECT_FALSE(list[0].name.empty());
  EXPECT_GT(list[0].memory_bytes, int64_t{1} << 28);
  for (const Kernel kernel : cpu_kernels())
    EXPECT_NE(list[0].details.find(kernel_name(kernel)), std::string::npos) << list[0].details;
}

TEST(Devices, ReportNamesTheCpuAndTheCudaLibrary) {
  const auto report = devices_report();
  EXPECT_NE(report.find(devices()[0].name), std::string::npos) << report;
  EXPECT_NE(report.find(load_cuda_library().status), std::string::npos) << report;
  EXPECT_EQ(report.back(), '\n');
}

TEST(Devices, VersionReportNamesTorchAndItsFolder) {
  const auto report = version_report();
  EXPECT_NE(report.find("weft      " WEFT_VERSION), std::string::npos) << report;
  const auto in = report.find(" in /");
  ASSERT_NE(in, std::string::npos) << report;
  const auto folder = report.substr(in + 4, report.find('\n', in) - in - 4);
  EXPECT_TRUE(std::filesystem::exists(folder + "/lib/libtorch_cpu.so")) << folder;
}

TEST(CudaLibrary, OneGpuIsListedForEachThatIsReady) {
  const auto& library = load_cuda_library();
  EXPECT_EQ(&library, &load_cuda_library());
  EXPECT_FALSE(library.status.empty());
  EXPECT_EQ(devices().size(), 1 + library.devices.size());
  EXPECT_EQ(library.state == CudaState::ready, !library.devices.empty());
}

TEST(CudaLibrary, AbsentLibraryIsSaidToBeNotBuilt) {
  const auto library = open_cuda_library("/nowhere/libweft_cuda.so");
  EXPECT_EQ(library.state, CudaState::not_built);
  EXPECT_EQ(library.table, nullptr);
  EXPECT_NE(library.status.find("/nowhere/libweft_cuda.so"), std::string::npos) << library.status;
  EXPECT_NE(library.status.find("bootstrap"), std::string::npos) << library.status;
}

TEST(CudaLibrary, FileThatIsNoLibraryIsNotLoaded) {
  const auto path = std::filesystem::temp_directory_path() / fmt::format("weft_{}.so", getpid());
  std::ofstream(path) << "this is no library";
  const auto library = open_cuda_library(path.string());
  std::filesystem::remove(path);
  EXPECT_EQ(library.state, CudaState::not_loaded);
  EXPECT_TRUE(library.status.starts_with("not loaded: ")) << library.status;
}

TEST(CudaLibrary, LibraryOfSomeoneElseIsNotLoaded) {
  const auto library = open_cuda_library("/lib/x86_64-linux-gnu/libm.so.6");
  EXPECT_EQ(library.state, CudaState::not_loaded);
  EXPECT_NE(library.status.find("not a CUDA library of weft"), std::string::npos) << library.status;
}

TEST(CudaLibrary, CopyBandwidthIsMeasuredOrSaysWhyNot) {
  if (load_cuda_library().state == CudaState::ready) {
    EXPECT_GT(cuda_copy_bandwidth(0, int64_t{1} << 26), 1e9);
    EXPECT_THROW(cuda_copy_bandwidth(1000), InputError);
    EXPECT_THROW(cuda_copy_bandwidth(0, 8), InputError);
  } else {
    EXPECT_THROW(cuda_copy_bandwidth(), Unsupported);
  }
}

}  // namespace
}  // namespace weft
