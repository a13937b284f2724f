#include "base/error.h"
#include "base/files.h"
#include "cli/command.h"
#include "cli/loading.h"
#include "cli/output.h"
#include "cli/signals.h"
#include "infer/score.h"

namespace weft::cli {
namespace {

struct LogitsFlags {
  std::string model, ids, out, dtype = "fp32";
  int64_t chunk = 0;
  bool step = false;
  void flags(Flags& f) {
    f.argument("model", model, "model directory");
    f("--ids", ids, "token ids: 5,17,3");
    f("--out", out, "file to write: T x vocabulary numbers, float32, little-endian, without a header");
    f("--dtype", dtype, "compute in fp32, bf16, fp16 or fp64");
    f("--step", step, "one token at a time, in the step form");
    f("--chunk", chunk, "so many tokens at a time, in the chunked form; 0: all at once");
  }
};

int run(const LogitsFlags& flags, const Session& session) {
  require(!flags.out.empty(), "--out is missing; give the file to write");
  const auto ids = parse_ids(flags.ids);
  const auto loaded = open_model(flags.model, flags.dtype, session);
  const StopSignals signals;
  AtomicFile file(flags.out);
  int64_t rows = 0;
  score(*loaded.model, ids, {.chunk = flags.chunk, .step = flags.step}, [&](const at::Tensor& logits) {
    const auto values = logits.to(at::kFloat).contiguous();  // [n, V]
    file.out().write(values.const_data_ptr<float>(), values.nbytes());
    rows += values.size(0);
    signals.check();
  });
  file.commit();
  if (!session.quiet) note(fmt::format("{}: {} x {} float32", flags.out, rows, loaded.model->logit_count()));
  return 0;
}

const Command register_logits{"logits", "a model's logits for given token ids, to a file", run};

}  // namespace
}  // namespace weft::cli
