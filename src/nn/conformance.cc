#include "nn/conformance.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "base/error.h"
#include "nn/conformance_forms.h"
#include "nn/mixer_cases.h"
#include "nn/stack.h"
#include "ops/kernel_choice.h"

namespace weft {
namespace {

using conformance::Form;
using conformance::Subject;

// A stack whose layers import "tokens", as a model's may: here small numbers made of the signs of its input.
class WithTokens final : public SequenceMixer {
 public:
  explicit WithTokens(std::unique_ptr<LayerStack> stack) : stack_(std::move(stack)) {
    add_child("stack", *stack_);
  }
  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    Context inner = context;
    const auto signs = (x.detach().slice(-1, 0, 3) > 0).to(at::kLong);
    const auto tokens = signs.select(-1, 0) + 2 * signs.select(-1, 1) + 4 * signs.select(-1, 2);
    inner.imports["tokens"] = {.tensors = {{"tokens", tokens}}};
    return stack_->run(x, state, inner);
  }
  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    return stack_->initial_state(batch, options);
  }
  bool causal() const override { return stack_->causal(); }
  int64_t state_bytes(int64_t tokens, at::ScalarType dtype) const override {
    return stack_->state_bytes(tokens, dtype);
  }

 private:
  std::unique_ptr<LayerStack> stack_;
};

std::unique_ptr<SequenceMixer> build(const CheckCase& subject, uint64_t seed, at::Device device) {
  std::unique_ptr<SequenceMixer> mixer;
  if (subject.node.is_list()) {
    auto stack = std::make_unique<LayerStack>(subject.node, LayerOptions{}, subject.width,
                                              StackOptions{subject.residual, subject.loop, {"tokens"}});
    if (stack->reads("tokens"))
      mixer = std::make_unique<WithTokens>(std::move(stack));
    else
      mixer = std::move(stack);
  } else {
    mixer =
        make_mixer(subject.node, Site{.width = subject.width, .num_layers = 2, .where = subject.node.where()},
                   {"width", "covers", "bf16", "fp32"});
  }
  mixer->initialize(seed);
  // Away from special values such as norms of exactly one and biases of exactly zero.
  at::NoGradGuard no_grad;
  auto random = at::make_generator<at::CPUGeneratorImpl>(seed + 1);
  for (const auto& [name, parameter] : mixer->parameters()) {
    auto noise = at::empty(parameter->value.sizes(), at::kFloat);
    parameter->value.add_(noise.normal_(0, 0.1, random));
  }
  mixer->to(device);
  return mixer;
}

CheckResult run_form(const Form& form, Subject& subject, const std::string& setting) {
  CheckResult result{.form = std::string(form.name) + ", " + setting, .bound = subject.bound};
  try {
    form.run(subject, result);
    if (result.verdict != CheckResult::Verdict::not_applicable)
      result.verdict =
          result.error <= subject.bound ? CheckResult::Verdict::pass : CheckResult::Verdict::fail;
  } catch (const std::exception& error) {
    result.verdict = CheckResult::Verdict::fail;
    result.detail = error.what();
    result.detail = result.detail.substr(0, result.detail.find('\n'));
  }
  return result;
}

}  // namespace

std::vector<CheckCase> read_check_cases(const Node& list) {
  std::vector<CheckCase> cases;
  for (const auto& node : list.items()) {
    CheckCase item;
    if (const Node* width = node.find("width")) item.width = width->as_int();
    if (const Node* bound = node.find("bf16")) item.bf16 = bound->as_double();
    if (const Node* bound = node.find("fp32")) item.fp32 = bound->as_double();
    if (const Node* layers = node.find("layers")) {
      for (const auto& key : node.keys())
        require(key == "layers" || key == "covers" || key == "width" || key == "bf16" || key == "fp32" ||
                    key == "residual" || key == "loop",
                "{}: unknown field; a case has layers, residual, loop, covers, width, bf16 and fp32",
                node.at(key).where());
      if (const Node* residual = node.find("residual")) item.residual = *residual;
      if (const Node* loop = node.find("loop")) item.loop = *loop;
      item.node = *layers;
      item.covers = node.at("covers").as_string();
    } else {
      item.node = node;
      item.covers = node.at("mixer").as_string();
    }
    cases.push_back(std::move(item));
  }
  return cases;
}

std::vector<CheckCase> builtin_check_cases() {
  return read_check_cases(Node::parse(kMixerCases, "mixer_cases.yaml"));
}

std::vector<CheckResult> check_mixer(const CheckCase& subject, uint64_t seed, at::Device device) {
  std::vector<CheckResult> results;
  const auto check = [&](at::ScalarType dtype, double bound, const std::string& setting) {
    const auto mixer = build(subject, seed, device);
    mixer->to(dtype);
    const auto reference = build(subject, seed, at::kCPU);
    reference->to(dtype);  // the same rounded parameters
    reference->to(at::kDouble);
    Subject under_test{*reference, *mixer, dtype, device, bound, subject.width, seed};
    for (const auto& form : conformance::forms())
      if (form.applies(under_test)) results.push_back(run_form(form, under_test, setting));
  };
  const auto on = device.is_cpu() ? std::string() : " on " + device.str();
  check(at::kDouble, 1e-9, "fp64" + on);
  const auto kernels =
      device.is_cpu() ? cpu_kernels() : std::vector<Kernel>{choose_kernel(device.type(), at::kFloat)};
  for (const Kernel kernel : kernels) {
    // On a GPU it is the choice already; forcing it would forbid the CPU, where the reference runs.
    const auto force = device.is_cpu() ? std::make_unique<ForceKernel>(kernel) : nullptr;
    check(at::kFloat, subject.fp32, fmt::format("fp32 {}{}", kernel_name(kernel), on));
  }
  check(at::kBFloat16, subject.bf16, "bf16" + on);
  return results;
}

}  // namespace weft
