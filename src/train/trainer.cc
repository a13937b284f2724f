#include "train/trainer.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>

#include <cmath>
#include <filesystem>

#include "base/error.h"
#include "base/text.h"
#include "io/model_directory.h"
#include "ops/loss/loss.h"
#include "train/interrupted.h"
#include "train/meter.h"

namespace weft {
namespace {

void seed_generators(uint64_t seed, at::Device device) {
  auto cpu = at::detail::getDefaultCPUGenerator();
  cpu.set_current_seed(seed);
  if (device.is_cpu()) return;
  auto generator = at::globalContext().defaultGenerator(device);
  generator.set_current_seed(seed);
}

std::string validation_text(const char* name, const Validation& validation) {
  return fmt::format("{} loss {:.4f} nats/token, {:.4f} bits/byte", name, validation.loss(),
                     validation.bits_per_byte());
}

// So that mistakes in model and optimizer show before anything is made; the vocabulary may not be known yet.
void check_model(const Recipe& recipe) {
  auto options = recipe.model;
  options.vocab = std::max<int64_t>(options.vocab, 1);
  const Model model(options);
  make_optimizer(recipe.optimizer, model.parameters());
}

bool holds_text(const std::string& path) {
  std::error_code error;
  const auto bytes = std::filesystem::file_size(path, error);
  return !error && bytes > 0;
}

// A run is never overwritten, even when its checkpoints are gone. A log without checkpoint and model is that of
// a run that was killed early: it begins again.
void check_folder(const std::string& folder, bool resume) {
  const auto checkpoints = list_checkpoints(folder);
  std::error_code error;
  const bool model = std::filesystem::exists(folder + "/model", error);
  require(resume || checkpoints.empty(),
          "{}: holds a run at step {} already; go on with --resume, choose another run.dir, or remove the "
          "folder",
          folder, checkpoints.empty() ? 0 : checkpoints.back().step);
  require(!model || !checkpoints.empty(),
          "{}: holds a finished run (model/) but no checkpoint to go on from (checkpoints/step-...); put its "
          "checkpoints back and use --resume, choose another run.dir, or remove the folder",
          folder);
  require(
      resume || !holds_text(folder + "/log.jsonl"),
      "{}: holds the log of a run (log.jsonl) that has no checkpoint; begin it again with --resume, choose "
      "another run.dir, or remove the folder",
      folder);
}

}  // namespace

Trainer::Trainer(const Recipe& recipe, const TrainerOptions& options)
    : recipe_(recipe), options_(options), out_(options.out ? *options.out : silent_) {
  check_folder(recipe.run.dir, options.resume);
  check_corpus(recipe_);
  check_model(recipe_);
  folder_ = std::make_unique<RunFolder>(recipe.run.dir);
  try {
    prepare();
  } catch (const Interrupted&) {  // run() says so
  } catch (...) {
    folder_->discard();
    throw;
  }
}

void Trainer::prepare() {
  corpus_ = prepare_corpus(recipe_, folder_->path(), out_, options_.stop);
  build_model();
  batches_ = std::make_unique<PackedBatches>(corpus_.train,
                                             PackedOptions{.length = recipe_.data.length,
                                                           .rows = recipe_.run.batch,
                                                           .seed = static_cast<uint64_t>(recipe_.run.seed)},
                                             model_->options().vocab);
  restore_or_begin(options_.resume);
}

Trainer::~Trainer() = default;

void Trainer::build_model() {
  auto& model = recipe_.model;
  const auto vocab = corpus_.tokenizer->vocab_size();
  require(model.vocab == 0 || model.vocab >= vocab, "model.vocab: {} but the tokenizer has {} tokens",
          model.vocab, vocab);
  if (model.vocab == 0) model.vocab = vocab;
  model_ = std::make_unique<Model>(model);
  if (recipe_.from.empty()) {
    model_->initialize(static_cast<uint64_t>(recipe_.run.seed));
  } else {
    auto loaded = load_model(recipe_.from);
    model_ = std::move(loaded.model);
    config_text_ = std::move(loaded.config_text);
    model_->to(at::kFloat);
    // What is still over the file's mapping cannot be written to.
    for (const auto& [name, parameter] : model_->parameters()) parameter->value = parameter->value.clone();
  }
  model_->to(options_.device);
  model_->requires_grad(true);
  model_->set_training(true);
  model_->set_recompute(recipe_.run.recompute);
  model_->set_compute_dtype(recipe_.run.dtype == "bf16" ? at::kBFloat16 : at::kFloat);
  parameters_ = model_->parameters();
  optimizer_ = make_optimizer(recipe_.optimizer, parameters_);
  configuration_ = recipe_.resolved();
  configuration_.set_child("model", model_->describe());
}

void Trainer::restore_or_begin(bool resume) {
  check_folder(folder_->path(), resume);  // again, now that no other process can write here
  const auto checkpoints = list_checkpoints(folder_->path());
  seed_generators(static_cast<uint64_t>(recipe_.run.seed), options_.device);
  if (!checkpoints.empty()) {
    state_ = load_checkpoint(checkpoints.back().path, training(), corpus_.fingerprint());
    require(state_.step <= recipe_.run.steps, "run.steps: {} but the run has done {} already",
            recipe_.run.steps, state_.step);
    batches_->seek(state_.data);
    out_.line(fmt::format("resuming at step {} from {}", state_.step, checkpoints.back().path));
  } else {
    state_.corpus = corpus_.fingerprint();
    if (resume) out_.line(fmt::format("{}: no checkpoint yet; beginning at step 0", folder_->path()));
  }
  write_atomically(folder_->file("recipe.yaml"), configuration_.dump());
  log_ = std::make_unique<JsonLog>(folder_->file("log.jsonl"), state_.step);
  if (recipe_.run.tensorboard)
    events_ = std::make_unique<EventFile>(folder_->file("tensorboard"), state_.step);
}

Trainer::Step Trainer::train_step() {
  std::vector<TokenBatch> parts;
  int64_t targets = 0;
  for (int64_t i = 0; i < recipe_.run.accumulate; ++i) {
    parts.push_back(batches_->next());
    targets += (parts.back().targets != ops::kIgnoreTarget).sum().item<int64_t>();
  }
  targets = std::max<int64_t>(targets, 1);
  for (const auto& [name, parameter] : parameters_) parameter->value.mutable_grad() = at::Tensor();
  double nats = 0;
  for (const auto& part : parts) {
    const auto losses = model_->losses(part.tokens.to(options_.device), part.targets.to(options_.device),
                                       part.starts.to(options_.device));  // [B * T]
    (losses.sum() / static_cast<double>(targets)).backward();
    nats += losses.detach().sum(at::kDouble).item<double>();
  }
  const double factor = schedule_factor(recipe_.schedule, state_.step, recipe_.run.steps);
  Step step{.loss = nats / static_cast<double>(targets),
            .gradient_norm = clip_gradients(parameters_, recipe_.run.clip),
            .learning_rate = optimizer_->learning_rate() * factor};
  require(std::isfinite(step.loss) && std::isfinite(step.gradient_norm),
          "step {}: the loss is {} and the gradient's norm {}; training has diverged. Lower optimizer.{}.lr "
          "(now {:g}), or lengthen schedule.warmup; checkpoints of {} are intact",
          state_.step + 1, step.loss, step.gradient_norm, recipe_.optimizer.entries().front().first,
          optimizer_->learning_rate(), folder_->path());
  optimizer_->step(factor);
  ++state_.step;
  state_.tokens += targets;
  state_.data = batches_->position();
  return step;
}

Validation Trainer::validate_briefly() {
  return validate(
      *model_, *corpus_.valid, *corpus_.tokenizer,
      {.length = recipe_.data.length, .rows = recipe_.run.batch, .batches = recipe_.run.eval_batches});
}

// Windows overlap by half, so that every token has at least half a window of context.
std::optional<Validation> Trainer::validate_whole() {
  Progress progress(out_, "validate", 100, "%");
  std::optional<Validation> result;
  try {
    result = validate(
        *model_, *corpus_.valid, *corpus_.tokenizer,
        {.length = recipe_.data.length, .overlap = recipe_.data.length / 2, .rows = recipe_.run.batch},
        [&](double share) {
          if (share < 1 && stop_wanted()) throw Interrupted();
          progress.at(100 * share);
        });
  } catch (const Interrupted&) {  // the result stays empty
  }
  progress.finish();
  return result;
}

bool Trainer::validated() const {
  for (const auto& line : read_json_log(folder_->file("log.jsonl")))
    if (line.step == state_.step && std::isfinite(line.value("final_valid_loss", NAN))) return true;
  return false;
}

std::string Trainer::headline() const {
  const double tokens = static_cast<double>(recipe_.run.batch * recipe_.run.accumulate * recipe_.data.length);
  return fmt::format("{}: {} parameters, {} tokens of text, {} steps of {} tokens", model_->options().name,
                     count_text(static_cast<double>(model_->parameter_count())),
                     count_text(static_cast<double>(corpus_.train->size())), recipe_.run.steps,
                     count_text(tokens));
}

void Trainer::record(const Step& step, const std::optional<Validation>& brief,
                     const std::optional<Validation>& whole) {
  const double rate = meter_->tokens_per_second();
  const auto text = fmt::format("step {}/{}  loss {:.4f}  {} tokens/s  {}  ETA {}", state_.step,
                                recipe_.run.steps, step.loss, count_text(rate), bytes_text(resident_bytes()),
                                duration_text(meter_->seconds_for(recipe_.run.steps - state_.step)));
  out_.update(text);
  if (!due(recipe_.run.log_every) && state_.step != 1 && !last() && !brief && !whole) return;
  if (!out_.live()) out_.line(text);
  LogLine line{.step = state_.step,
               .values = {{"loss", step.loss},
                          {"lr", step.learning_rate},
                          {"gradient_norm", step.gradient_norm},
                          {"tokens", static_cast<double>(state_.tokens)},
                          {"tokens_per_s", rate},
                          {"seconds", meter_->seconds()}}};
  if (brief) add_validation(line, "valid", "validation", *brief);
  if (whole) add_validation(line, "final_valid", "whole validation", *whole);
  append(line);
}

void Trainer::add_validation(LogLine& line, const std::string& name, const char* words,
                             const Validation& validation) {
  out_.line(fmt::format("step {}: {}", line.step, validation_text(words, validation)));
  line.values.emplace_back(name + "_loss", validation.loss());
  line.values.emplace_back(name + "_bits_per_byte", validation.bits_per_byte());
}

void Trainer::append(const LogLine& line) {
  log_->append(line);
  if (!events_) return;
  for (const auto& [name, value] : line.values)
    if (name != "seconds" && name != "tokens") events_->scalar(name, line.step, value);
}

void Trainer::warn_of_warmup() {
  const auto warmup = recipe_.schedule.warmup, steps = recipe_.run.steps;
  if (warmup <= steps) return;
  out_.line(
      fmt::format("warning: schedule.warmup is {} but run.steps is {}: the learning rate never reaches "
                  "that of the recipe",
                  warmup, steps));
}

void Trainer::save() {
  state_.seconds = meter_->seconds();
  log_->sync();  // a checkpoint never stands for steps that the log has lost
  save_checkpoint(folder_->path(), training(), state_);
  prune_checkpoints(folder_->path(), recipe_.run.keep, state_.best_loss ? state_.best_step : 0);
}

TrainResult Trainer::run() {
  TrainResult result{.step = state_.step};
  const auto stopped = [&](const char* when) {
    result.stopped = true;
    out_.line(fmt::format("stopped {}step {}; go on with --resume", when, result.step));
    return result;
  };
  if (!batches_) return stopped("while preparing the data, before ");
  out_.line(configuration_.dump() + "\n" + headline());
  warn_of_warmup();
  meter_ = std::make_unique<Meter>(state_.seconds);
  if (last() && corpus_.valid && !validated()) {  // stopped in the middle of it
    result.valid = validate_whole();
    if (!result.valid) return stopped("in the validation after ");
    LogLine line{.step = state_.step, .values = {}};
    add_validation(line, "final_valid", "whole validation", *result.valid);
    append(line);
  }
  while (state_.step < recipe_.run.steps) {
    const int64_t tokens_before = state_.tokens;
    const Step step = train_step();
    meter_->step(state_.tokens - tokens_before);
    std::optional<Validation> brief, whole;
    if (corpus_.valid && (due(recipe_.run.eval_every) || last())) brief = validate_briefly();
    const bool validate_now = corpus_.valid && last();
    if (validate_now) whole = validate_whole();
    const bool unfinished = validate_now && !whole;
    const bool best = brief && (!state_.best_loss || brief->loss() < *state_.best_loss);
    if (best) {
      state_.best_loss = brief->loss();
      state_.best_step = state_.step;
    }
    record(step, brief, whole);
    result.loss = step.loss;
    result.valid = whole;
    const bool stop = !last() && stop_wanted();
    if (best || due(recipe_.run.checkpoint_every) || last() || stop) save();
    result.step = state_.step;
    if (stop) return stopped("at ");
    if (unfinished) return stopped("in the validation after ");
  }
  return finish(std::move(result));
}

TrainResult Trainer::finish(TrainResult result) {
  result.model = folder_->file("model");
  save_model(result.model, *model_, corpus_.tokenizer.get(), config_text_);
  const auto curve = curve_of(read_json_log(folder_->file("log.jsonl")), model_->options().name);
  write_atomically(folder_->file("curve.svg"), curve_svg(curve));
  const auto drawn = draw_curve(curve);
  if (!drawn.empty()) out_.line(drawn.substr(0, drawn.size() - 1));
  out_.line(fmt::format("model {}  curve {}", result.model, folder_->file("curve.svg")));
  return result;
}

Curve curve_of(const std::vector<LogLine>& log, const std::string& title) {
  Curve curve{.title = title, .train = {}, .valid = {}};
  for (const auto& line : log) {
    const double step = static_cast<double>(line.step), loss = line.value("loss", NAN),
                 valid = line.value("valid_loss", NAN);
    if (std::isfinite(loss)) curve.train.push_back({step, loss});
    if (std::isfinite(valid)) curve.valid.push_back({step, valid});
  }
  return curve;
}

}  // namespace weft
