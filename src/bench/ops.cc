#include "bench/ops.h"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>

#include "ops/kernel_choice.h"

namespace weft::bench {
namespace {

bool is_float(const at::Tensor& x) { return x.defined() && (x.is_floating_point() || x.is_complex()); }

Tensors copies(const Tensors& inputs, bool gradients) {
  Tensors list;
  for (const auto& x : inputs)
    list.push_back(x.defined() ? x.detach().clone().requires_grad_(gradients && is_float(x)) : x);
  return list;
}

Tensors in_double(const Tensors& inputs) {
  Tensors list;
  for (const auto& x : inputs)
    list.push_back(is_float(x) ? x.to(x.is_complex() ? at::kComplexDouble : at::kDouble) : x);
  return list;
}

Tensors leaves_of(const Tensors& inputs) {
  Tensors leaves;
  for (const auto& x : inputs)
    if (x.defined() && x.requires_grad()) leaves.push_back(x);
  return leaves;
}

// The same values for every type: they are representable in all.
at::Tensor upstream_like(const at::Tensor& y) {
  const auto ramp = at::arange(y.numel(), at::TensorOptions(at::kLong)).remainder(7) - 3;
  return ramp.reshape(y.sizes()).to(y.options());
}

struct Evaluation {
  Tensors outputs, gradients;
};

Evaluation evaluate(const TensorFunction& function, const Tensors& inputs, bool gradients) {
  const auto list = copies(inputs, gradients);
  const at::AutoGradMode mode(gradients);
  const auto outputs = function(list);
  Evaluation result{outputs, {}};
  if (gradients)
    result.gradients = torch::autograd::grad({outputs[0]}, leaves_of(list), {upstream_like(outputs[0])},
                                             std::nullopt, false, /*allow_unused=*/true);
  return result;
}

// max|found - expected| / max|expected|; infinite for NaN and other shapes.
double relative_error(const at::Tensor& found, const at::Tensor& expected) {
  if (!expected.defined()) return 0;
  const double nothing = std::numeric_limits<double>::infinity();
  if (!found.defined() || found.sizes() != expected.sizes()) return nothing;
  const auto wide = found.detach().to(expected.scalar_type());
  const double error = (wide - expected.detach()).abs().max().item<double>();
  const double scale = std::max(expected.detach().abs().max().item<double>(), 1e-30);
  return error <= nothing ? error / scale : nothing;
}

std::string compare(const char* what, const Tensors& found, const Tensors& expected, double bound) {
  for (size_t i = 0; i < expected.size(); ++i) {
    const double error = i < found.size() ? relative_error(found[i], expected[i]) : HUGE_VAL;
    if (!(error <= bound)) return fmt::format("{} {}: error {:.1e} > {:.1e}", what, i, error, bound);
  }
  return "";
}

double bytes_of(const Tensors& list, bool floats_only) {
  double sum = 0;
  for (const auto& x : list)
    if (x.defined() && (!floats_only || is_float(x))) sum += static_cast<double>(x.nbytes());
  return sum;
}

// Copies of the inputs, enough to fill 64 MiB, which is more than the caches of processors and of GPUs hold.
class Rotation {
 public:
  Rotation(const OpCase& subject, bool gradients) {
    const auto first = subject.inputs();
    const double bytes = std::max(bytes_of(first, false), 1.0);
    const auto count = std::clamp<int64_t>(static_cast<int64_t>(67e6 / bytes) + 1, 2, 64);
    for (int64_t i = 0; i < count; ++i) sets_.push_back(copies(first, gradients));
  }
  const Tensors& next() { return sets_[used_++ % sets_.size()]; }

 private:
  std::vector<Tensors> sets_;
  size_t used_ = 0;
};

Work work_of(const OpCase& subject, bool gradients) {
  const at::NoGradGuard no_grad;
  const auto inputs = subject.inputs();
  const double in = bytes_of(inputs, false), out = bytes_of(subject.weft(copies(inputs, false)), false);
  if (!gradients) return {in + out, subject.flops};
  return {2 * (in + out) + bytes_of(inputs, true), subject.flops * (1 + subject.backward_factor)};
}

std::string kernel_of(const OpCase& subject, at::Device device) {
  const auto type = subject.check_inputs()[0].scalar_type();
  return std::string(kernel_name(choose_kernel(device.type(), c10::isComplexType(type) ? at::kFloat : type)));
}

}  // namespace

std::string difference(const OpCase& subject, const TensorFunction& function, double bound,
                       double gradient_bound) {
  const auto inputs = subject.check_inputs();
  const auto expected = evaluate(subject.reference, in_double(inputs), !subject.step);
  try {
    const auto found = evaluate(function, inputs, !subject.step);
    const auto outputs = compare("output", found.outputs, expected.outputs, bound);
    return outputs.empty() ? compare("gradient", found.gradients, expected.gradients, gradient_bound)
                           : outputs;
  } catch (const std::exception& error) {
    return std::string(error.what()).substr(0, 200);
  }
}

std::function<void()> timed_call(const OpCase& subject, const TensorFunction& function, bool gradients) {
  const auto rotation = std::make_shared<Rotation>(subject, gradients);
  if (!gradients)
    return [rotation, function] {
      const at::NoGradGuard no_grad;
      function(rotation->next());
    };
  const at::Tensor upstream = [&] {
    const at::NoGradGuard no_grad;
    return upstream_like(function(rotation->next())[0]);
  }();
  return [rotation, function, upstream] {
    const auto& inputs = rotation->next();
    torch::autograd::grad({function(inputs)[0]}, leaves_of(inputs), {upstream}, std::nullopt, false, true);
  };
}

std::string pass_of(const OpCase& subject, bool gradients) {
  return subject.step ? "step" : gradients ? "f+b" : "fwd";
}

OneCall call_on_new_inputs(const OpCase& subject, bool gradients) {
  Tensors inputs;
  const double inputs_s = sampler_of([&] { inputs = subject.inputs(); })(1);
  return {inputs_s, sampler_of([&] { evaluate(subject.weft, inputs, gradients); })(1)};
}

const PeerTime* Row::best_peer() const {
  const PeerTime* best = nullptr;
  for (const auto& peer : peers)
    if (peer.timing && (!best || peer.timing->median_s < best->timing->median_s)) best = &peer;
  return best;
}

double Row::speedup() const {
  const auto* peer = best_peer();
  return weft && peer && weft->median_s > 0 ? peer->timing->median_s / weft->median_s : 0;
}

namespace {

// Times weft and all peers that can do the pass, in turns.
void time_row(Row& row, const OpCase& subject, bool gradients, const OpsOptions& options) {
  std::vector<Sampler> samplers{device_sampler(timed_call(subject, subject.weft, gradients), options.device)};
  row.peers.reserve(row.peers.size() + options.peers.size());  // `timed` points into it
  std::vector<PeerTime*> timed;
  for (auto& peer : row.peers)
    if (peer.wrong.empty()) {
      samplers.push_back(device_sampler(timed_call(subject, subject.peer_call, gradients), options.device));
      timed.push_back(&peer);
    }
  for (const auto& peer : options.peers) {
    const auto key = gradients ? subject.external + ".backward" : subject.external;
    if (!peer->has(key)) continue;
    row.peers.push_back({peer->name(), {}, {}});
    auto* entry = &row.peers.back();
    samplers.push_back([peer, entry, key](int64_t calls) {
      return entry->wrong.empty() ? peer->run(key, calls, entry->wrong) : 0.0;
    });
    timed.push_back(entry);
  }
  const auto timings = time_in_turns(samplers, options.timing);
  row.weft = timings[0];
  for (size_t i = 0; i < timed.size(); ++i)
    if (timed[i]->wrong.empty()) timed[i]->timing = timings[i + 1];
}

}  // namespace

std::vector<Row> run_op(const OpCase& subject, const Rates& rates, const OpsOptions& options) {
  // A peer need not be as exact as weft promises to be; it must compute the same.
  const double loose = subject.bound < 1e-3 ? 1e-3 : 1e-1;
  const Row checked{.family = subject.family,
                    .op = subject.op,
                    .shape = subject.shape,
                    .pass = {},
                    .dtype = dtype_name(subject.check_inputs()[0].scalar_type()),
                    .kernel = kernel_of(subject, options.device),
                    .work = {},
                    .weft = {},
                    .weft_wrong = difference(subject, subject.weft, subject.bound, subject.gradient_bound),
                    .peers = {}};
  const std::string peer_wrong =
      subject.peer_call ? difference(subject, subject.peer_call, loose, loose) : std::string();
  std::vector<Row> rows;
  for (const bool gradients : {false, true}) {
    if (gradients && subject.step) break;
    Row row = checked;
    row.pass = pass_of(subject, gradients);
    if (subject.peer_call) row.peers.push_back({subject.peer, {}, peer_wrong});
    if (row.weft_wrong.empty()) {
      row.work = work_of(subject, gradients);
      row.floor_s = floor_s(row.work, rates);
      time_row(row, subject, gradients, options);
    }
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace weft::bench
