#include "bench/mixers.h"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <functional>
#include <optional>

#include "base/error.h"
#include "nn/mixer.h"
#include "ops/kernel_choice.h"

namespace weft::bench {
namespace {

using Function = std::function<void()>;

// The same call on the kernels that are chosen for this machine, and on the references.
std::vector<Timing> against_reference(const Function& call, const TimingOptions& options) {
  return time_in_turns({call,
                        [&] {
                          const ForceKernel reference(Kernel::reference);
                          call();
                        }},
                       options);
}

Context context_of(int64_t batch, int64_t position, int64_t tokens) {
  auto context = Context::at_positions(at::full({batch}, position, at::kLong), tokens);
  context.dtype = at::kFloat;
  return context;
}

}  // namespace

MixerRow time_mixer(const Node& node, const MixerBench& options) {
  MixerRow row{.mixer = node.at("mixer").as_string(),
               .shape = fmt::format("{}x{}x{}", options.batch, options.tokens, options.width),
               .train = {},
               .train_reference = {},
               .step = {},
               .step_reference = {},
               .left_out = ""};
  std::unique_ptr<SequenceMixer> mixer;
  try {
    mixer = make_mixer(node, {.width = options.width}, {"mixer"});
  } catch (const InputError& error) {
    row.left_out = error.what();
    return row;
  }
  if (!mixer->import_ports().empty()) {
    row.left_out = "it reads another layer's strands";
    return row;
  }
  mixer->initialize(1);
  mixer->requires_grad(true);
  row.parameters = mixer->parameter_count();
  row.state_bytes = mixer->causal() ? mixer->state_bytes(options.tokens, at::kFloat) : 0;
  row.train_tokens = static_cast<double>(options.batch * options.tokens);

  const TimingOptions timing{.warm_up = 1,
                             .samples = options.quick ? 3 : 7,
                             .minimum_s = options.quick ? 0.1 : 0.5,
                             .most_samples = 200};
  const auto x = at::randn({options.batch, options.tokens, options.width});
  auto context = context_of(options.batch, 0, options.tokens);
  context.keep_state = false;
  context.training = true;
  const auto parameters = mixer->parameters();
  const auto train = against_reference(
      [&] {
        for (const auto& [parameter_name, parameter] : parameters)
          parameter->value.mutable_grad() = at::Tensor();
        auto input = x.detach().requires_grad_(true);
        auto state = mixer->initial_state(options.batch, x.options());
        mixer->run(input, state, context).sum().backward();
      },
      timing);
  row.train = train[0];
  row.train_reference = train[1];
  if (!mixer->causal()) return row;

  at::NoGradGuard no_grad;
  mixer->requires_grad(false);
  const auto prompt = at::randn({1, options.tokens, options.width}), token = at::randn({1, 1, options.width});
  auto state = mixer->initial_state(1, x.options());
  mixer->run(prompt, state, context_of(1, 0, options.tokens));
  const auto after = context_of(1, options.tokens, 1);
  const auto step = against_reference(
      [&] {
        auto mine = state;
        mixer->step(token, mine, after);
      },
      timing);
  row.step = step[0];
  row.step_reference = step[1];
  return row;
}

}  // namespace weft::bench
