#include "infer/generate.h"

#include <cstdio>

#include "base/error.h"
#include "base/files.h"
#include "base/text.h"
#include "cli/command.h"
#include "cli/loading.h"
#include "cli/output.h"
#include "cli/sampling_flags.h"
#include "cli/signals.h"

namespace weft::cli {
namespace {

struct GenerateFlags {
  std::string model, prompt, prompt_file, ids, dtype = "fp32";
  int64_t tokens = 256, chunk = 512;
  SamplingFlags sampling;
  bool ignore_end = false;
  std::vector<std::string> stop;
  void flags(Flags& f) {
    f.argument("model", model, "model directory");
    f.argument("prompt", prompt, "text to continue; without it the model begins a document", false);
    f("--prompt-file", prompt_file, "file with the text to continue; - is standard input");
    f("--ids", ids, "continue these token ids, as in 5,17,3, and print ids");
    f("--tokens,-n", tokens, "most tokens to generate");
    sampling.flags(f);
    f("--stop", stop, "end before this text; may be given several times");
    f("--ignore-end", ignore_end, "go on after an end-of-text token");
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

GenerateOptions options_of(const GenerateFlags& flags, const GenerationDefaults& defaults,
                           const StopSignals& signals) {
  return {.sampling = flags.sampling.options(defaults),
          .max_tokens = flags.tokens,
          .stop = flags.stop,
          .stop_at_end_of_text = !flags.ignore_end,
          .end_ids = defaults.end_ids,
          .prefill_chunk = flags.chunk,
          .cancelled = [&signals] { return signals.received(); }};
}

Generation continue_ids(const GenerateFlags& flags, LoadedModel& loaded, const StopSignals& signals) {
  require(flags.prompt.empty() && flags.prompt_file.empty() && flags.stop.empty(),
          "--ids takes the place of a prompt and knows no --stop");
  const char* separator = "";
  return generate_ids(*loaded.model, parse_ids(flags.ids), options_of(flags, loaded.generation, signals),
                      [&](int64_t id) {
                        write_output(fmt::format("{}{}", separator, id), true);
                        separator = ",";
                      });
}

int run(const GenerateFlags& flags, const Session& session) {
  const auto prompt = read_prompt(flags);
  auto loaded = open_model(flags.model, flags.dtype, session);
  const StopSignals signals;
  const auto result = !flags.ids.empty() ? continue_ids(flags, loaded, signals)
                                         : generate(*loaded.model, tokenizer_of(loaded), prompt,
                                                    options_of(flags, loaded.generation, signals),
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
