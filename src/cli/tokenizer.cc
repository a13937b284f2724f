#include <nlohmann/json.hpp>

#include <chrono>
#include <cmath>

#include "base/error.h"
#include "base/files.h"
#include "cli/command.h"
#include "cli/loading.h"
#include "cli/output.h"
#include "io/gguf/gguf.h"
#include "io/gguf/tokenizer.h"
#include "io/tokenizers/tokenizer.h"
#include "io/tokenizers/utf8.h"

namespace weft::cli {
namespace {

struct TokenizerFlags {
  std::string tokenizer, text, file, ids;
  bool add_special = false, plain = false, skip_special = false, speed = false;
  void flags(Flags& f) {
    f.argument("tokenizer", tokenizer, "a tokenizer's file or folder, or bytes, characters, dna, dna-K");
    f.argument("text", text, "text to encode; the ids come as a list", false);
    f("--file", file, "encode the content of this file");
    f("--ids", ids, "decode these ids: 5,17,3 or [5, 17, 3]");
    f("--add-special", add_special, "with the ids that the definition puts around a text");
    f("--plain", plain, "special tokens inside the text are text");
    f("--skip-special", skip_special, "decode without special tokens");
    f("--speed", speed, "print how fast the text is encoded instead of the ids");
  }
};

// The fastest of five rounds, so that other programs on the machine count as little as possible.
std::string speed_of(const Tokenizer& tokenizer, const std::string& text, const EncodeOptions& options) {
  double best = INFINITY;
  size_t ids = 0;
  for (int round = 0; round < 5; ++round) {
    const auto start = std::chrono::steady_clock::now();
    ids = tokenizer.encode(text, options).size();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return fmt::format("{} bytes, {} ids, {:.2f} MB/s on one core\n", text.size(), ids,
                     static_cast<double>(text.size()) / 1e6 / best);
}

int run(const TokenizerFlags& flags, const Session&) {
  const auto tokenizer = flags.tokenizer.ends_with(".gguf")
                             ? read_gguf_tokenizer(GgufFile(flags.tokenizer).metadata())
                             : load_tokenizer(flags.tokenizer);
  require(tokenizer != nullptr, "{}: the file has no tokenizer", flags.tokenizer);
  if (!flags.ids.empty()) {
    write_output(to_utf8(tokenizer->decode(parse_ids(flags.ids), flags.skip_special)) + "\n");
    return 0;
  }
  if (flags.text.empty() && flags.file.empty()) {
    const auto end = tokenizer->end_of_text();
    write_output(fmt::format("{} ids, end of text {}, fingerprint {}\n", tokenizer->vocab_size(),
                             end ? fmt::format("{}", *end) : "none", tokenizer->fingerprint()));
    return 0;
  }
  const std::string text = flags.file.empty() ? flags.text : read_text(flags.file);
  const EncodeOptions options{.add_special = flags.add_special, .parse_special = !flags.plain};
  write_output(flags.speed ? speed_of(*tokenizer, text, options)
                           : nlohmann::json(tokenizer->encode(text, options)).dump() + "\n");
  return 0;
}

const Command register_tokenizer{"tokenizer", "what a tokenizer makes of a text", run};

}  // namespace
}  // namespace weft::cli
