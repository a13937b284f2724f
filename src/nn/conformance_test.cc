// Registered means tested: every mixer has a line in mixer_cases.yaml, and every line passes every form.
#include "nn/conformance.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "nn/residual.h"
#include "ops/devices.h"

namespace weft {
namespace {

void expect_conformance(const CheckCase& subject, at::Device device) {
  size_t applicable = 0;
  for (const auto& result : check_mixer(subject, 1, device)) {
    if (result.verdict == CheckResult::Verdict::not_applicable) {
      EXPECT_FALSE(result.detail.empty()) << result.form << ": says no reason";
      continue;
    }
    ++applicable;
    EXPECT_EQ(result.verdict, CheckResult::Verdict::pass)
        << subject.covers << ": " << result.form << ": error " << result.error << ", bound " << result.bound
        << " (" << result.detail << ")";
  }
  EXPECT_GE(applicable, 8u);
}

class Conformance : public testing::TestWithParam<size_t> {};
TEST_P(Conformance, EveryForm) { expect_conformance(builtin_check_cases()[GetParam()], at::kCPU); }

// The same on the first GPU, where there is one.
class ConformanceOnGpu : public testing::TestWithParam<size_t> {};
TEST_P(ConformanceOnGpu, EveryForm) {
  expect_conformance(builtin_check_cases()[GetParam()], at::Device(at::kCUDA, 0));
}

size_t gpu_cases() {
  for (const auto& device : devices())
    if (device.kind.rfind("cuda", 0) == 0) return builtin_check_cases().size();
  return 0;
}

std::string case_name(const testing::TestParamInfo<size_t>& info) {
  return builtin_check_cases()[info.param].covers + "_" + std::to_string(info.param);
}

INSTANTIATE_TEST_SUITE_P(All, Conformance, testing::Range<size_t>(0, builtin_check_cases().size()),
                         case_name);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(ConformanceOnGpu);
INSTANTIATE_TEST_SUITE_P(All, ConformanceOnGpu, testing::Range<size_t>(0, gpu_cases()), case_name);

TEST(ConformanceCases, CoverEveryRegisteredMixer) {
  const auto cases = builtin_check_cases();
  for (const auto& name : mixer_names()) {
    const bool covered =
        std::any_of(cases.begin(), cases.end(), [&](const CheckCase& c) { return c.covers == name; });
    EXPECT_TRUE(covered) << "add a line to src/nn/mixer_cases.yaml, such as: - {mixer: " << name << "}";
  }
}

TEST(ConformanceCases, CoverEveryResidualStream) {
  const auto cases = builtin_check_cases();
  for (const auto& name : residual_names()) {
    if (name == "plain") continue;
    const bool covered = std::any_of(cases.begin(), cases.end(), [&](const CheckCase& c) {
      return !c.residual.is_null() && c.residual.find(name) != nullptr;
    });
    EXPECT_TRUE(covered) << "add a case of layers to src/nn/mixer_cases.yaml with residual: {" << name
                         << ": {}}";
  }
}

}  // namespace
}  // namespace weft
