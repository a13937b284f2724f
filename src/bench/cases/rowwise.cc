// Ops that are bound by memory, and the loss: short convolution, norms, rotary embedding, cross-entropy.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <fmt/format.h>

#include <cmath>

#include "bench/op_case.h"
#include "bench/peers/eager.h"
#include "ops/activation/activation.h"
#include "ops/conv/conv.h"
#include "ops/conv/conv_cases.h"
#include "ops/conv/long_conv.h"
#include "ops/loss/loss.h"
#include "ops/loss/loss_cases.h"
#include "ops/norm/norm.h"
#include "ops/norm/norm_cases.h"
#include "ops/rope/rope.h"
#include "ops/rope/rope_cases.h"

namespace weft::bench {
namespace {

constexpr double kEps = 1e-6;

at::Tensor normal(at::IntArrayRef shape, at::ScalarType dtype, at::Device device) {
  return at::randn(shape, at::TensorOptions(at::kFloat)).to(dtype).to(device);
}

struct Bounds {
  double fp32, half;
};

OpCase bounded(at::ScalarType dtype, Bounds bounds) {
  OpCase result;
  result.bound = result.gradient_bound = dtype == at::kFloat ? bounds.fp32 : bounds.half;
  return result;
}

OpCase conv_case(at::ScalarType dtype, at::Device device) {
  const ops::ShortConvCase timed{.tokens = 512, .channels = 8192, .silu = true};
  const ops::ShortConvCase checked{.batch = 2, .tokens = 75, .channels = 37, .silu = true};
  const auto list = [=](const ops::ShortConvCase& c) {
    const auto in = ops::short_conv_inputs(c, dtype);
    return Tensors{in.x.to(device), in.weight.to(device)};
  };
  auto result = bounded(dtype, {1e-5, 2e-2});
  result.op = "conv + silu";
  result.shape = fmt::format("1x{}, {} ch, width {}", timed.tokens, timed.channels, timed.width);
  result.peer = "at::conv1d, at::silu";
  result.external = "conv_8192x4_512";
  result.weft = [](const Tensors& x) {
    return Tensors{ops::short_conv({.x = x[0], .weight = x[1], .silu = true}).y};
  };
  result.reference = [](const Tensors& x) {
    return Tensors{ops::reference::short_conv({.x = x[0], .weight = x[1], .silu = true}).y};
  };
  result.peer_call = [](const Tensors& x) { return Tensors{peers::short_conv_silu(x[0], x[1])}; };
  result.inputs = [=] { return list(timed); };
  result.check_inputs = [=] { return list(checked); };
  result.flops = timed.flops();
  return result;
}

OpCase conv_step_case(at::ScalarType dtype, at::Device device) {
  const ops::ShortConvCase timed{.channels = 8192, .silu = true, .state = true};
  const ops::ShortConvCase checked{.batch = 3, .channels = 37, .silu = true, .state = true};
  const auto list = [=](const ops::ShortConvCase& c) {
    const auto in = ops::short_conv_inputs(c, dtype);
    return Tensors{in.x.to(device), in.weight.to(device), in.initial_state.to(device)};
  };
  const auto problem_of = [](const Tensors& x) {
    return ops::ShortConv{.x = x[0], .weight = x[1], .silu = true, .initial_state = x[2]};
  };
  auto result = bounded(dtype, {1e-5, 2e-2});
  result.op = "conv + silu step";
  result.shape = fmt::format("1x1, {} ch, width {}", timed.channels, timed.width);
  result.peer = "at::cat, product, sum, at::silu";
  result.weft = [=](const Tensors& x) { return Tensors{ops::short_conv_step(problem_of(x))}; };
  result.reference = [=](const Tensors& x) { return Tensors{ops::reference::short_conv(problem_of(x)).y}; };
  result.peer_call = [](const Tensors& x) { return Tensors{peers::short_conv_silu_step(x[0], x[1], x[2])}; };
  result.inputs = [=] { return list(timed); };
  result.check_inputs = [=] { return list(checked); };
  result.flops = timed.flops();
  result.step = true;
  return result;
}

OpCase long_conv_case(int64_t tokens, int64_t channels, at::Device device) {
  const auto list = [=](int64_t t, int64_t e) {
    const auto decay =
        at::exp(at::arange(t, at::TensorOptions(at::kFloat)) * (-4.0 / static_cast<double>(t)));
    return Tensors{normal({1, t, e}, at::kFloat, device), (normal({e, t}, at::kFloat, device) * decay)};
  };
  auto result = bounded(at::kFloat, {1e-5, 2e-2});
  result.op = "long conv";
  result.shape = fmt::format("1x{}, {} channels", tokens, channels);
  result.peer = "torch.fft: rfft, product, irfft";
  result.weft = [](const Tensors& x) { return Tensors{ops::long_conv(x[0], x[1])}; };
  result.reference = [](const Tensors& x) { return Tensors{ops::reference::long_conv(x[0], x[1])}; };
  result.peer_call = [](const Tensors& x) { return Tensors{peers::fft_conv(x[0], x[1])}; };
  result.inputs = [=] { return list(tokens, channels); };
  result.check_inputs = [=] { return list(75, 37); };
  const double n = 2.0 * static_cast<double>(tokens);
  result.flops =
      static_cast<double>(channels) * (3 * 2.5 * n * std::log2(n) + 4 * n);  // three real transforms
  result.backward_factor = 5.0 / 3;
  return result;
}

struct NormForm {
  const char *name, *peer;
  bool gated;
  TensorFunction weft, reference, peer_call;  // of x, weight and gate
};

std::vector<NormForm> norm_forms() {
  const auto torch_rms = [](const Tensors& x) { return at::rms_norm(x[0], {x[0].size(-1)}, x[1], kEps); };
  return {
      {"rms norm", "at::rms_norm", false,
       [](const Tensors& x) { return Tensors{ops::rms_norm(x[0], x[1], kEps)}; },
       [](const Tensors& x) { return Tensors{ops::reference::rms_norm(x[0], x[1], kEps)}; },
       [=](const Tensors& x) { return Tensors{torch_rms(x)}; }},
      {"gated rms norm", "at::rms_norm, at::silu", true,
       [](const Tensors& x) { return Tensors{ops::gated_rms_norm(x[0], x[2], x[1], kEps, true)}; },
       [](const Tensors& x) { return Tensors{ops::reference::gated_rms_norm(x[0], x[2], x[1], kEps, true)}; },
       [=](const Tensors& x) { return Tensors{torch_rms(x) * at::silu(x[2])}; }},
      {"layer norm", "at::layer_norm", false,
       [](const Tensors& x) { return Tensors{ops::layer_norm(x[0], x[1], {}, kEps)}; },
       [](const Tensors& x) { return Tensors{ops::reference::layer_norm(x[0], x[1], {}, kEps)}; },
       [](const Tensors& x) { return Tensors{at::layer_norm(x[0], {x[0].size(-1)}, x[1], {}, kEps)}; }},
      {"l2 norm", "x * rsqrt(sum(x * x))", false,
       [](const Tensors& x) { return Tensors{ops::l2_norm(x[0], kEps)}; },
       [](const Tensors& x) { return Tensors{ops::reference::l2_norm(x[0], kEps)}; },
       [](const Tensors& x) { return Tensors{x[0] * at::rsqrt((x[0] * x[0]).sum({-1}, true) + kEps)}; }}};
}

OpCase norm_case(const NormForm& form, const ops::NormCase& timed, at::ScalarType dtype, at::Device device) {
  const auto list = [=, gated = form.gated](int64_t rows, int64_t width) {
    Tensors tensors{normal({rows, width}, dtype, device), normal({width}, dtype, device)};
    if (gated) tensors.push_back(normal({rows, width}, dtype, device));
    return tensors;
  };
  auto result = bounded(dtype, {1e-5, 1e-2});
  result.op = form.name;
  result.shape = fmt::format("{}x{}", timed.rows, timed.width);
  result.peer = form.peer;
  if (!form.gated && timed.width == 2048 && result.op == "rms norm") result.external = "rms_norm_2048x2048";
  result.weft = form.weft;
  result.reference = form.reference;
  result.peer_call = form.peer_call;
  result.inputs = [=] { return list(timed.rows, timed.width); };
  result.check_inputs = [=] { return list(33, 65); };
  result.flops = 4.0 * static_cast<double>(timed.rows * timed.width);
  return result;
}

struct JoinForm {
  const char *name, *peer;
  double flops;  // of an element
  TensorFunction weft, reference,
      peer_call;  // of two tensors of one shape; gradients are those of the first result
};

std::vector<JoinForm> join_forms() {
  return {{"silu * x", "at::silu, at::mul", 8,
           [](const Tensors& x) { return Tensors{ops::silu_mul(x[0], x[1])}; },
           [](const Tensors& x) { return Tensors{ops::reference::silu_mul(x[0], x[1])}; },
           [](const Tensors& x) { return Tensors{at::silu(x[0]) * x[1]}; }},
          {"add, rms norm", "at::add, at::rms_norm", 5,
           [](const Tensors& x) {
             const auto r = ops::add_rms_norm(x[0], x[1], {}, kEps);
             return Tensors{r.y, r.sum};
           },
           [](const Tensors& x) {
             const auto r = ops::reference::add_rms_norm(x[0], x[1], {}, kEps);
             return Tensors{r.y, r.sum};
           },
           [](const Tensors& x) {
             const auto sum = x[0] + x[1];
             return Tensors{at::rms_norm(sum, {sum.size(-1)}, {}, kEps), sum};
           }}};
}

OpCase join_case(const JoinForm& form, at::ScalarType dtype, at::Device device) {
  constexpr int64_t kRows = 2048, kWidth = 2048;
  const auto list = [=](int64_t rows, int64_t width) {
    return Tensors{normal({rows, width}, dtype, device), normal({rows, width}, dtype, device)};
  };
  auto result = bounded(dtype, {1e-5, 1e-2});
  result.op = form.name;
  result.shape = fmt::format("{}x{}", kRows, kWidth);
  result.peer = form.peer;
  result.weft = form.weft;
  result.reference = form.reference;
  result.peer_call = form.peer_call;
  result.inputs = [=] { return list(kRows, kWidth); };
  result.check_inputs = [=] { return list(33, 65); };
  result.flops = form.flops * static_cast<double>(kRows * kWidth);
  return result;
}

// The peer's table of cosines is made before; weft computes its own in every call.
OpCase rope_case(const ops::RopeCase& timed, at::ScalarType dtype, at::Device device) {
  const auto list = [=](int64_t batch, int64_t tokens) {
    const auto positions =
        at::arange(tokens, at::TensorOptions(at::kLong).device(device)).expand({batch, tokens});
    return Tensors{normal({batch, tokens, timed.heads, timed.width}, dtype, device), positions.contiguous()};
  };
  const auto frequencies = at::pow(10000.0, at::arange(0, timed.width, 2, at::TensorOptions(at::kDouble)) *
                                                (-1.0 / static_cast<double>(timed.width)));
  const auto angles = at::outer(at::arange(timed.tokens, at::TensorOptions(at::kDouble)), frequencies);
  const auto cosine = angles.cos().to(dtype).to(device), sine = angles.sin().to(dtype).to(device);
  auto result = bounded(dtype, {1e-5, 1e-2});
  result.op = "rope";
  result.shape = fmt::format("{}x{}, {} heads, {}", timed.batch, timed.tokens, timed.heads, timed.width);
  result.peer = "rotated halves with a table made before";
  result.weft = [](const Tensors& x) { return Tensors{ops::rope(x[0], x[1], {})}; };
  result.reference = [](const Tensors& x) { return Tensors{ops::reference::rope(x[0], x[1], {})}; };
  result.peer_call = [=](const Tensors& x) {
    const int64_t tokens = x[0].size(1);
    return Tensors{peers::rope(x[0], cosine.narrow(0, 0, tokens), sine.narrow(0, 0, tokens))};
  };
  result.inputs = [=] { return list(timed.batch, timed.tokens); };
  result.check_inputs = [=] { return list(2, 75); };
  result.flops = static_cast<double>(timed.flops());
  result.backward_factor = 1;
  return result;
}

OpCase loss_case(const ops::LossCase& timed, at::ScalarType dtype, at::Device device) {
  const auto list = [=](int64_t tokens, int64_t width, int64_t vocabulary) {
    const auto targets = at::randint(vocabulary, {tokens}, at::TensorOptions(at::kLong)).to(device);
    return Tensors{normal({tokens, width}, dtype, device),
                   normal({vocabulary, width}, dtype, device) / std::sqrt(static_cast<double>(width)),
                   targets};
  };
  auto result = bounded(dtype, {1e-5, 2e-2});
  result.op = "linear cross-entropy";
  result.shape = fmt::format("{}x{}, vocab {}", timed.tokens, timed.width, timed.vocabulary);
  result.peer = "at::linear, at::cross_entropy_loss";
  result.weft = [](const Tensors& x) { return Tensors{ops::linear_cross_entropy(x[0], x[1], x[2])}; };
  result.reference = [](const Tensors& x) {
    return Tensors{ops::reference::linear_cross_entropy(x[0], x[1], x[2], 1.0)};
  };
  result.peer_call = [](const Tensors& x) {
    return Tensors{
        at::cross_entropy_loss(at::linear(x[0], x[1]).to(at::kFloat), x[2], {}, at::Reduction::None)};
  };
  result.inputs = [=] { return list(timed.tokens, timed.width, timed.vocabulary); };
  result.check_inputs = [=] { return list(75, 24, 101); };
  result.flops = static_cast<double>(timed.forward_flops());
  result.backward_factor = 3;  // logits again, then both gradients
  return result;
}

}  // namespace

std::vector<OpCase> rowwise_op_cases(at::ScalarType dtype, at::Device device) {
  std::vector<OpCase> cases{conv_case(dtype, device), conv_step_case(dtype, device)};
  if (dtype == at::kFloat) cases.push_back(long_conv_case(16384, 256, device));
  for (const auto& form : norm_forms()) cases.push_back(norm_case(form, {2048, 2048}, dtype, device));
  cases.push_back(norm_case(norm_forms()[3], {16384, 64}, dtype, device));
  for (const auto& form : join_forms()) cases.push_back(join_case(form, dtype, device));
  cases.push_back(rope_case({1, 2048, 8, 64, 0, false}, dtype, device));
  cases.push_back(loss_case({1024, 512, 8192}, dtype, device));
  cases.push_back(loss_case({4096, 192, 2048}, dtype, device));
  return cases;
}

std::vector<OpFamily> op_families(at::Device device) {
  if (device.is_cuda())
    return {{"linear attention", gpu_linear_attention_op_cases},
            {"scans, convolution, recurrent networks", gpu_recurrence_op_cases},
            {"norms, rotation, loss", rowwise_op_cases},
            {"attention", gpu_attention_op_cases}};
  return {{"linear attention", linear_attention_op_cases},
          {"scans", recurrence_op_cases},
          {"recurrent networks", rnn_op_cases},
          {"convolution, norms, rotation, loss", rowwise_op_cases},
          {"attention", attention_op_cases}};
}

std::vector<OpCase> op_cases(at::ScalarType dtype, at::Device device) {
  std::vector<OpCase> all;
  for (const auto& [family, cases] : op_families(device))
    for (auto& one : cases(dtype, device)) {
      one.family = family;
      all.push_back(std::move(one));
    }
  return all;
}

}  // namespace weft::bench
