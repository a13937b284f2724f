// The speed of a mixer as an experiment of recipes: how much its kernels save against the plain references of its ops.
#include "base/error.h"
#include "bench/mixers.h"
#include "study/experiment.h"

namespace weft::bench {
namespace {

class MixerSpeed final : public Experiment {
 public:
  struct Options {
    Node layer;
    int64_t width = 256, batch = 4, tokens = 512;
    void fields(Fields& f) {
      f("layer", layer, "the mixer and its options: {mixer: lstm, heads: 4}");
      f("width", width, "D, width of its input", at_least(1));
      f("batch", batch, "rows of the whole form", at_least(1));
      f("tokens", tokens, "T, tokens of a row", at_least(1));
    }
  };
  explicit MixerSpeed(const Options& options) : o_(options) {
    require(o_.layer.is_map(), "layer is missing; give a mixer, such as {{mixer: lstm}}");
  }

  Outcome run(const ExperimentContext&) override {
    const auto row = time_mixer(o_.layer, {.width = o_.width, .batch = o_.batch, .tokens = o_.tokens});
    require(row.left_out.empty(), "{}: {}", o_.layer.where(), row.left_out);
    Outcome outcome;
    outcome.metrics = {{"train_tokens_per_second", row.train_tokens / row.train.median_s},
                       {"train_speedup", row.train_reference.median_s / row.train.median_s},
                       {"parameters", static_cast<double>(row.parameters)},
                       {"state_bytes", static_cast<double>(row.state_bytes)}};
    if (row.step.samples > 0) {
      outcome.metrics["steps_per_second"] = 1 / row.step.median_s;
      outcome.metrics["step_speedup"] = row.step_reference.median_s / row.step.median_s;
    }
    return outcome;
  }

 private:
  Options o_;
};
const RegisterExperiment<MixerSpeed> register_mixer_speed{
    "mixer_speed",
    "times of a mixer, training and steps, on its kernels and on the plain references of its ops"};

}  // namespace
}  // namespace weft::bench
