#include "base/progress.h"
#include "base/text.h"
#include "cli/command.h"
#include "cli/loading.h"
#include "cli/output.h"
#include "cli/signals.h"
#include "train/trainer.h"

namespace weft::cli {
namespace {

struct TrainFlags {
  std::string recipe;
  std::vector<std::string> set;
  bool resume = false;
  void flags(Flags& f) {
    f.argument("recipe", recipe, "recipe to train");
    f("--set", set, "changes one field of the recipe, as run.steps=200; may be given several times");
    f("--resume", resume, "go on from the latest checkpoint of the run's folder");
  }
};

int run(const TrainFlags& flags, const Session& session) {
  const auto recipe = load_recipe(flags.recipe, flags.set);
  const StopSignals signals;
  auto lines = LineOutput::to(stderr, session.quiet);
  Trainer trainer(recipe,
                  {.resume = flags.resume, .device = session_device(session), .out = &lines, .stop = [&] {
                     return signals.received();
                   }});
  const auto result = trainer.run();
  lines.clear();
  if (!result.stopped) print("{}\n", result.model);
  return result.stopped ? signals.exit_code() : 0;
}

const Command register_train{"train", "train a model as a recipe says", run};

}  // namespace
}  // namespace weft::cli
