#include "infer/generate.h"

#include <cstdio>

#include "base/error.h"
#include "base/files.h"
#include "base/text.h"
#include "cli/command.h"
#include "cli/loading.h"
#include "cli/output.h"
#include "cli/signals.h"

namespace weft::cli {
namespace {

struct GenerateFlags {
  std::string model, prompt, prompt_file, dtype = "fp32";
  int64_t tokens = 256, top_k = 0, seed = 1, chunk = 512;
  double temperature = 0.8, top_p = 1, min_p = 0, repetition_penalty = 1;
  bool ignore_end = false;
  std::vector<std::string> stop;
  void flags(Flags& f) {
    f.argument("model", model, "model directory");
    f.argument("prompt", prompt, "text to continue; without it the model begins a document", false);
    f("--prompt-file", prompt_file, "file with the text to continue; - is standard input");
    f("--tokens,-n", tokens, "most tokens to generate");
    f("--temperature,-t", temperature, "0 is greedy");
    f("--top-k", top_k, "draw from the k most likely tokens; 0: from all");
    f("--top-p", top_p, "draw from the most likely tokens that together have this probability");
    f("--min-p", min_p, "leave out tokens less likely than this share of the most likely one");
    f("--repetition-penalty", repetition_penalty, "above 1 makes tokens that occurred before less likely");
    f("--stop", stop, "end before this text; may be given several times");
    f("--ignore-end", ignore_end, "go on after an end-of-text token");
    f("--seed", seed, "equal seeds give equal texts");
    f("--chunk", chunk, "prompt tokens in one call");
    f("--dtype", dtype, "fp32, bf16, fp16 or fp64");
  }
};

std::string read_prompt(const GenerateFlags& flags) {
  require(flags.prompt.empty() || flags.prompt_file.empty(),
          "give either a prompt or --prompt-file, not both");
  if (flags.prompt_file.empty()) return flags.prompt;
  if (flags.prompt_file != "-") return read_text(flags.prompt_file);
  std::string text;
  char block[4096];
  for (size_t got; (got = std::fread(block, 1, sizeof block, stdin)) > 0;) text.append(block, got);
  return text;
}

GenerateOptions options_of(const GenerateFlags& flags, const StopSignals& signals) {
  return {.sampling = {.temperature = flags.temperature,
                       .top_k = flags.top_k,
                       .top_p = flags.top_p,
                       .min_p = flags.min_p,
                       .repetition_penalty = flags.repetition_penalty,
                       .seed = static_cast<uint64_t>(flags.seed)},
          .max_tokens = flags.tokens,
          .stop = flags.stop,
          .stop_at_end_of_text = !flags.ignore_end,
          .prefill_chunk = flags.chunk,
          .cancelled = [&signals] { return signals.received(); }};
}

int run(const GenerateFlags& flags, const Session& session) {
  const auto prompt = read_prompt(flags);
  const auto loaded = open_model(flags.model, flags.dtype, session);
  const StopSignals signals;
  const auto result = generate(*loaded.model, *loaded.tokenizer, prompt, options_of(flags, signals),
                               [](std::string_view text) { write_output(text, true); });
  write_output("\n", true);
  if (!session.quiet)
    note(fmt::format(
        "{} tokens, {:.1f} tokens/s; first token after {:.3f} s ({} prompt tokens); state {}; ended by {}",
        result.ids.size(), result.tokens_per_second(), result.first_token_s, result.prompt_tokens,
        bytes_text(result.state_bytes), stop_reason_name(result.reason)));
  return signals.exit_code();
}

const Command register_generate{"generate", "continue a text", run};

}  // namespace
}  // namespace weft::cli
