#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "cli/command.h"
#include "cli/loading.h"
#include "cli/output.h"
#include "io/gguf/model.h"
#include "io/pretrained/huggingface.h"

namespace weft::cli {
namespace {

struct ConvertFlags {
  std::string in, out, to, dtype;
  void flags(Flags& f) {
    f.argument("in", in, "model directory or GGUF file");
    f.argument("out", out, "where to write: a new directory, or a file for gguf");
    f("--to", to, "hf (a directory for transformers), gguf, or weft (a model directory)");
    f("--dtype", dtype,
      "of the weights: fp32, fp16, bf16, fp64 (not gguf), q8_0 (gguf); without it as they are");
  }
};

GgmlType gguf_type(const std::string& dtype, Model& model) {
  if (dtype == "q8_0") return GgmlType::Q8_0;
  switch (dtype.empty() ? compute_type(model) : dtype_named(dtype)) {
    case at::kFloat:
      return GgmlType::F32;
    case at::kHalf:
      return GgmlType::F16;
    case at::kBFloat16:
      return GgmlType::BF16;
    default:
      throw InputError("GGUF files are written in fp32, fp16, bf16 or q8_0; choose one with --dtype");
  }
}

// config.json says of which type the weights are.
void set_config_dtype(LoadedModel& loaded, const std::string& dtype) {
  if (loaded.config_text.empty()) return;
  const auto name = dtype == "fp32"   ? "float32"
                    : dtype == "fp16" ? "float16"
                    : dtype == "bf16" ? "bfloat16"
                                      : "float64";
  auto config = nlohmann::ordered_json::parse(loaded.config_text);
  config[config.contains("torch_dtype") ? "torch_dtype" : "dtype"] = name;
  loaded.config_text = config.dump(2);
}

int run(const ConvertFlags& flags, const Session& session) {
  const auto to = flags.to.empty() && flags.out.ends_with(".gguf") ? "gguf" : flags.to;
  require(to == "hf" || to == "gguf" || to == "weft", "--to {}: must be one of hf, gguf, weft", to);
  require(!std::filesystem::exists(flags.out), "{}: exists already; give another path or remove it",
          flags.out);
  require(flags.dtype != "q8_0" || to == "gguf", "--dtype q8_0: only GGUF files are quantized");
  auto loaded = load_model(flags.in);
  for (const auto& text : loaded.notes) note(text);
  if (to == "gguf") {
    save_gguf(flags.out, loaded, gguf_type(flags.dtype, *loaded.model));
  } else {
    if (!flags.dtype.empty()) {
      loaded.model->to(dtype_named(flags.dtype));
      set_config_dtype(loaded, flags.dtype);
    }
    if (to == "hf")
      save_huggingface(flags.out, loaded);
    else
      save_model(flags.out, loaded);
  }
  if (!session.quiet) note(fmt::format("{}: written", flags.out));
  return 0;
}

const Command register_convert{"convert", "a model in another format: Hugging Face, GGUF or weft", run};

}  // namespace
}  // namespace weft::cli
