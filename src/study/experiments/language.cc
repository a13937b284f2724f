// A language model on text, as `weft train` makes it.
#include <cmath>
#include <cstdlib>
#include <filesystem>

#include "base/error.h"
#include "study/experiment.h"
#include "train/trainer.h"

namespace weft {
namespace {

class Language final : public Experiment {
 public:
  struct Options {
    Node model, tokenizer = Node::scalar("bytes"), data, optimizer, schedule, run;
    void fields(Fields& f) {
      f("model", model, "the network");
      f("tokenizer", tokenizer, "bytes, {bpe: {vocab: N}}, or the path of a tokenizer.json");
      f("data", data, "training and validation text");
      f("optimizer", optimizer, "one optimizer and its options");
      f("schedule", schedule, "learning rate over the run");
      f("run", run, "length, batch, precision, checkpoints");
    }
  };
  explicit Language(const Options& options) : o_(options) {}

  Outcome run(const ExperimentContext& context) override {
    auto recipe = read_recipe(write_options(o_), context.base, context.base + "/recipe.yaml");
    recipe.run.seed = static_cast<int64_t>(context.seed);
    recipe.run.dir = context.folder + "/run";
    // The trainer's own lines tell of progress: "step 12/400  loss 5.1 ...".
    LineOutput lines(
        [&](std::string_view text) {
          const auto at = text.find("step ");
          if (at == std::string_view::npos) return;
          const double step = std::strtod(text.data() + at + 5, nullptr);
          context.progress(std::min(1.0, step / static_cast<double>(recipe.run.steps)), "");
        },
        LineOutput::Style::live);
    Trainer trainer(recipe, {.resume = std::filesystem::exists(recipe.run.dir),
                             .device = context.device,
                             .out = &lines,
                             .stop = context.stop});
    const auto result = trainer.run();
    if (result.stopped) return {.stopped = true, .metrics = {}};
    Outcome outcome;
    const auto log = read_json_log(recipe.run.dir + "/log.jsonl");
    outcome.metrics = {{"train_loss", result.loss},
                       {"first_loss", log.empty() ? result.loss : log.front().value("loss", result.loss)},
                       {"steps", static_cast<double>(result.step)},
                       {"seconds", trainer.state().seconds},
                       {"tokens_per_second", static_cast<double>(trainer.state().tokens) /
                                                 std::max(trainer.state().seconds, 1e-9)},
                       {"parameters", static_cast<double>(trainer.model().parameter_count())}};
    if (result.valid) {
      outcome.metrics["loss"] = result.valid->loss();
      outcome.metrics["perplexity"] = std::exp(result.valid->loss());
      outcome.metrics["bits_per_byte"] = result.valid->bits_per_byte();
    }
    return outcome;
  }

 private:
  Options o_;
};
const RegisterExperiment<Language> register_language{"language", "train a language model on text"};

}  // namespace
}  // namespace weft
