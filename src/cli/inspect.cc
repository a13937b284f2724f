#include <filesystem>

#include "base/error.h"
#include "base/text.h"
#include "cli/command.h"
#include "cli/loading.h"
#include "cli/model_report.h"
#include "cli/output.h"
#include "train/recipe.h"

namespace weft::cli {
namespace {

struct InspectFlags {
  std::string what, dtype = "fp32";
  std::vector<std::string> set;
  int64_t context = 1024;
  bool yaml = false;
  void flags(Flags& f) {
    f.argument("model", what, "model directory, GGUF file, recipe, or the YAML file of a model");
    f("--set", set, "changes one field of a recipe, as model.width=64; may be given several times");
    f("--context", context, "tokens before the one that flops and state are given for");
    f("--dtype", dtype, "activations in fp32, bf16, fp16 or fp64");
    f("--yaml", yaml, "print the resolved model instead, every option written out");
  }
};

int64_t vocabulary(const Node& tokenizer) {
  if (tokenizer.is_map()) return tokenizer.at("bpe").at("vocab").as_int();
  return load_tokenizer(tokenizer.as_string())->vocab_size();
}

// The three kinds of files: the model.yaml of a model directory has a format number, a recipe has a model
// beside other parts, and else the fields are those of a model.
ModelOptions options_of(const InspectFlags& flags) {
  const bool file = std::filesystem::is_regular_file(flags.what);
  const auto path = file ? flags.what : find_model_folder(flags.what) + "/model.yaml";
  const Node node = Node::load(path);
  if (node.is_map() && node.find("model") && !node.find("format")) {
    const auto recipe = load_recipe(path, flags.set);
    auto options = recipe.model;
    if (options.vocab == 0) options.vocab = vocabulary(recipe.tokenizer);
    return options;
  }
  require(flags.set.empty(), "--set changes recipes, and {} is none", path);
  const bool saved = node.is_map() && node.find("format");
  return read_options<ModelOptions>(saved ? node.at("model") : node, "model");
}

// A model to look at: pretrained ones are opened, so that what is passed over is told.
std::unique_ptr<Model> model_of(const InspectFlags& flags) {
  if (!is_pretrained(flags.what)) return std::make_unique<Model>(options_of(flags));
  require(flags.set.empty(), "--set changes recipes, and {} is none", flags.what);
  auto loaded = load_model(flags.what);
  for (const auto& line : loaded.notes) note(line);
  return std::move(loaded.model);
}

int run(const InspectFlags& flags, const Session& session) {
  require(flags.context >= 0, "--context {}: must be at least 0", flags.context);
  const auto dtype = dtype_named(flags.dtype);
  const auto device = session_device(session);
  const auto opened = model_of(flags);
  const Model& model = *opened;
  if (flags.yaml) {
    print("{}\n", model.describe().dump());
    return 0;
  }
  print("{}: {} parameters, {} layers, width {}, vocabulary {}; {} on {}\n\n", model.options().name,
        count_text(static_cast<double>(model.parameter_count())), model.stack().layers().size(),
        model.options().width, model.options().vocab, flags.dtype, device.str());
  print("{}\nat {} tokens of context:\n{}", draw_stack(model), flags.context,
        cost_report(model, {.context = flags.context, .dtype = dtype, .device = device}));
  return 0;
}

const Command register_inspect{"inspect", "draw a model's layers and what they cost", run};

}  // namespace
}  // namespace weft::cli
