#include <chrono>

#include "base/error.h"
#include "base/progress.h"
#include "base/text.h"
#include "cli/command.h"
#include "cli/eval_tasks.h"
#include "cli/loading.h"
#include "cli/output.h"
#include "cli/signals.h"
#include "infer/evaluate.h"

namespace weft::cli {
namespace {

struct EvalFlags {
  std::string model, file, separator, dtype = "fp32";
  int64_t chunk = 1024;
  TaskFlags tasks;
  void flags(Flags& f) {
    f.argument("model", model, "model directory");
    f.argument("file", file, "text to predict", false);
    f("--separator", separator, "text between documents; without it the file is one document");
    f("--chunk", chunk, "tokens in one call; bounds memory, does not change the result");
    tasks.flags(f);
    f("--dtype", dtype, "fp32, bf16, fp16 or fp64");
  }
};

void show(const Evaluation& result) {
  print("bits_per_byte {:.6f}\nperplexity {:.6f}\ntokens {}\nbytes {}\ndocuments {}\n",
        result.bits_per_byte(), result.perplexity(), result.tokens, result.bytes, result.documents);
}

int run(const EvalFlags& flags, const Session& session) {
  require(flags.file.empty() != flags.tasks.tasks.empty(), "give either a text to predict or --tasks");
  const auto loaded = open_model(flags.model, flags.dtype, session);
  if (!flags.tasks.tasks.empty()) return evaluate_tasks(loaded, flags.tasks, flags.chunk, session);
  const StopSignals signals;
  auto lines = LineOutput::to(stderr, session.quiet);
  std::optional<Progress> progress;
  const auto start = std::chrono::steady_clock::now();
  const auto result = evaluate(*loaded.model, tokenizer_of(loaded), flags.file,
                               {.chunk = flags.chunk,
                                .separator = flags.separator,
                                .progress =
                                    [&](int64_t done, int64_t total, const Evaluation&) {
                                      if (!progress)
                                        progress.emplace(lines, "eval", static_cast<double>(total), "bytes");
                                      progress->at(static_cast<double>(done));
                                    },
                                .cancelled = [&] { return signals.received(); }});
  if (progress) progress->finish();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (result.complete) show(result);
  if (!session.quiet)
    note(fmt::format("{}{} tokens in {:.1f} s, {} tokens/s", result.complete ? "" : "stopped: ",
                     result.tokens, seconds, count_text(static_cast<double>(result.tokens) / seconds)));
  return signals.exit_code();
}

const Command register_eval{"eval", "bits per byte of a text of any length, or scores of tasks", run};

}  // namespace
}  // namespace weft::cli
