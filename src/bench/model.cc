#include "bench/model.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "base/text.h"
#include "infer/step_graph.h"
#include "io/tokenizers/tokenizer.h"
#include "train/optimizers/optimizer.h"

namespace weft::bench {
namespace {

int64_t vocabulary_of(const Recipe& recipe) {
  if (recipe.model.vocab > 0) return recipe.model.vocab;
  if (recipe.tokenizer.is_scalar()) return load_tokenizer(recipe.tokenizer.as_string())->vocab_size();
  return read_options<BpeOptions>(recipe.tokenizer.at("bpe"), "bpe").vocab;
}

at::Tensor random_ids(const Model& model, int64_t rows, int64_t tokens) {
  return at::randint(model.options().vocab, {rows, tokens}, at::TensorOptions(at::kLong)).to(model.device());
}

double weight_bytes(const Model& model) {
  double sum = 0;
  for (const auto& [name, parameter] : model.parameters())
    sum += static_cast<double>(parameter->value.nbytes());
  return sum;
}

double state_bytes(const Model& model, int64_t tokens) {
  return static_cast<double>(model.stack().state_bytes(tokens, model.compute_dtype()));
}

// As the trainer's step: every row begins a document.
std::function<void()> training_step(ModelSubject& subject, Optimizer& optimizer,
                                    const std::vector<NamedParameter>& parameters) {
  auto& model = *subject.model;
  const auto ids = random_ids(model, subject.batch, subject.length + 1);
  const auto tokens = ids.narrow(1, 0, subject.length).contiguous();
  const auto targets = ids.narrow(1, 1, subject.length).contiguous();
  auto starts = at::zeros({subject.batch, subject.length}, tokens.options().dtype(at::kBool));
  starts.select(1, 0).fill_(true);
  return [=, &model, &optimizer, &parameters, clip = subject.clip] {
    for (const auto& [name, parameter] : parameters) parameter->value.mutable_grad() = at::Tensor();
    model.losses(tokens, targets, starts).mean().backward();
    clip_gradients(parameters, clip);
    optimizer.step(1e-3);  // a small factor keeps random targets from driving the weights away
  };
}

ModelRow train_row(ModelSubject& subject, const ModelBench& options, const TimingOptions& timing) {
  require(!subject.optimizer.is_null(),
          "bench: {} has no optimizer; time training with a recipe, or leave the part out", subject.name);
  auto& model = *subject.model;
  model.requires_grad(true);
  model.set_training(true);
  const auto parameters = model.parameters();
  const auto optimizer = make_optimizer(subject.optimizer, parameters);
  auto turns = timing;
  turns.samples = options.steps;
  ModelRow row{.part = "train",
               .shape = fmt::format("{}x{}", subject.batch, subject.length),
               .timing = {},
               .work = {}};
  row.timing = time_in_turns({training_step(subject, *optimizer, parameters)}, turns)[0];
  row.tokens = static_cast<double>(subject.batch * subject.length);
  row.work.flops = 3 * row.tokens * model.flops_per_token(subject.length);
  row.work.bytes = 3 * weight_bytes(model);
  for (const auto& [name, parameter] : parameters) parameter->value.mutable_grad() = at::Tensor();
  return row;
}

ModelRow prefill_row(Model& model, const ModelBench& options, const TimingOptions& timing) {
  const auto ids = random_ids(model, 1, options.prompt);
  ModelRow row{.part = "prefill", .shape = fmt::format("1x{}", options.prompt), .timing = {}, .work = {}};
  row.timing = time_in_turns({[&] {
                               auto state = model.initial_state(1);
                               model.logits(model.run(ids, state).narrow(1, options.prompt - 1, 1));
                             }},
                             timing)[0];
  row.tokens = static_cast<double>(options.prompt);
  row.work = {weight_bytes(model), row.tokens * model.flops_per_token(options.prompt)};
  return row;
}

// Whether steps can be replayed as a CUDA graph, as the decoder does.
bool steps_can_be_recorded(Model& model, const ModelState& state, const ModelBench& options) {
  if (!model.device().is_cuda()) return false;
  try {
    StepGraph(model, state, options.prompt + options.generate);
    return true;
  } catch (const Unsupported&) {
    return false;
  }
}

// The likeliest token each time, so that every token waits for the one before. A sample is a whole text; on a GPU a replayed
// graph for each token where that can be, the recording not counted.
ModelRow generate_row(Model& model, const ModelBench& options, TimingOptions timing) {
  const auto prompt = random_ids(model, 1, options.prompt);
  auto begin = model.initial_state(1);
  model.run(prompt, begin);
  const auto first = random_ids(model, 1, 1);
  const Sampler launch_by_launch = sampler_of(
      [&] {
        auto state = begin.select(at::zeros({1}, at::TensorOptions(at::kLong).device(model.device())));
        auto id = first;
        for (int64_t i = 0; i < options.generate; ++i) id = model.logits(model.step(id, state)).argmax(-1);
      },
      timing.wait);
  const Sampler replayed = [&](int64_t texts) {
    double seconds = 0;
    for (int64_t i = 0; i < texts; ++i) {
      StepGraph graph(model, begin, options.prompt + options.generate);
      seconds += sampler_of(
          [&] {
            auto id = first;
            for (int64_t j = 0; j < options.generate; ++j) id = graph.step(id).argmax(-1);
          },
          timing.wait)(1);
    }
    return seconds;
  };
  ModelRow row{.part = "generate",
               .shape = fmt::format("1x{} after {}", options.generate, options.prompt),
               .timing = {},
               .work = {}};
  timing.warm_up = 1;
  row.timing = time_in_turns(
      std::vector<Sampler>{steps_can_be_recorded(model, begin, options) ? replayed : launch_by_launch},
      timing)[0];
  row.timing.median_s /= static_cast<double>(options.generate);
  row.timing.best_s /= static_cast<double>(options.generate);
  row.tokens = 1;
  row.work = {weight_bytes(model) + state_bytes(model, options.prompt),
              model.flops_per_token(options.prompt)};
  return row;
}

}  // namespace

ModelSubject subject_of_recipe(const Recipe& recipe, at::Device device, at::ScalarType dtype) {
  auto options = recipe.model;
  options.vocab = vocabulary_of(recipe);
  ModelSubject subject{.name = options.name,
                       .model = std::make_unique<Model>(options),
                       .optimizer = recipe.optimizer,
                       .clip = recipe.run.clip,
                       .batch = recipe.run.batch,
                       .length = recipe.data.length};
  subject.model->initialize(static_cast<uint64_t>(recipe.run.seed));
  subject.model->to(device);
  subject.model->set_compute_dtype(dtype);
  subject.model->set_recompute(recipe.run.recompute);
  return subject;
}

std::vector<ModelRow> run_model(ModelSubject& subject, const Rates& rates, const ModelBench& options) {
  auto& model = *subject.model;
  TimingOptions timing;
  timing.wait = waiter(model.device());
  std::vector<ModelRow> rows;
  for (const auto& part : options.parts)
    require(part == "train" || part == "prefill" || part == "generate",
            "bench: '{}' is not a part; known: train, prefill, generate", part);
  for (const auto& part : options.parts) {
    // As the commands do: fp32 weights beneath in training, weights in the type of the activations afterwards.
    model.to(part == "train" ? at::kFloat : model.compute_dtype());
    if (part == "train") {
      rows.push_back(train_row(subject, options, timing));
    } else {
      const at::NoGradGuard no_grad;
      model.set_training(false);
      rows.push_back(part == "prefill" ? prefill_row(model, options, timing)
                                       : generate_row(model, options, timing));
    }
    rows.back().floor_s = floor_s(rows.back().work, rates);
  }
  return rows;
}

}  // namespace weft::bench
