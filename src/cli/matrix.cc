#include "infer/mixing_matrix.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Functions.h>

#include "base/error.h"
#include "base/files.h"
#include "cli/command.h"
#include "cli/loading.h"
#include "cli/output.h"

namespace weft::cli {
namespace {

struct MatrixFlags {
  std::string model, text;
  std::vector<std::string> out;
  int64_t layer = 0, tokens = 32, channel = -1;
  void flags(Flags& f) {
    f.argument("model", model, "model directory");
    f.argument("text", text, "what the model reads; without it random tokens", false);
    f("--layer", layer, "layer whose mixer is looked at, counted from 0");
    f("--tokens", tokens, "tokens that are read, at most, of the text");
    f("--channel", channel, "this channel alone, with signs; -1: norms over all channels");
    f("--out", out,
      "file to write, .csv or .svg; may be given several times; without it CSV on standard output");
  }
};

at::Tensor ids_of(const MatrixFlags& flags, const LoadedModel& loaded) {
  if (flags.text.empty()) {
    auto generator = at::detail::createCPUGenerator(1);
    return at::randint(loaded.model->options().vocab, {1, flags.tokens}, generator,
                       at::TensorOptions(at::kLong));
  }
  auto ids = tokenizer_of(loaded).encode(flags.text);
  require(!ids.empty(), "the text has no tokens");
  if (static_cast<int64_t>(ids.size()) > flags.tokens) ids.resize(static_cast<size_t>(flags.tokens));
  return at::tensor(ids, at::kLong).unsqueeze(0);
}

int run(const MatrixFlags& flags, const Session& session) {
  require(flags.tokens >= 1, "--tokens {}: expected at least 1", flags.tokens);
  for (const auto& path : flags.out)
    require(path.ends_with(".csv") || path.ends_with(".svg"),
            "--out {}: expected a name ending in .csv or .svg", path);
  const auto loaded = open_model(flags.model, "fp64", session);
  const auto ids = ids_of(flags, loaded).to(loaded.model->device());
  const auto input = loaded.model->mixer_input(ids, flags.layer);
  const auto& layer = *loaded.model->stack().layers()[static_cast<size_t>(flags.layer)];
  const auto jacobian = mixing_jacobian(*layer.mixer(), input);
  const auto matrix =
      flags.channel < 0 ? mixing_strength(jacobian) : mixing_of_channel(jacobian, flags.channel);
  if (flags.out.empty()) write_output(matrix_csv(matrix.cpu()));
  for (const auto& path : flags.out) {
    const auto title = fmt::format("{}, layer {}: {}", loaded.model->options().name, flags.layer,
                                   layer.node().at("mixer").as_string());
    write_atomically(path,
                     path.ends_with(".csv") ? matrix_csv(matrix.cpu()) : matrix_svg(matrix.cpu(), title));
    if (!session.quiet) note(fmt::format("{}: {} x {}", path, matrix.size(0), matrix.size(1)));
  }
  return 0;
}

const Command register_matrix{"matrix", "which token sees which: the mixing matrix of a layer", run};

}  // namespace
}  // namespace weft::cli
