#include "infer/evaluate.h"

#include <c10/core/GradMode.h>

#include <cmath>
#include <numbers>

#include "base/error.h"
#include "infer/generate.h"
#include "infer/text_pieces.h"
#include "ops/loss/loss.h"

namespace weft {
namespace {

// Collects tokens and runs them through the model chunk by chunk.
class Meter {
 public:
  Meter(Model& model, int64_t chunk, Evaluation& out)
      : model_(model), chunk_(static_cast<size_t>(chunk)), out_(out), state_(model.initial_state(1)) {}

  void add(const std::vector<int64_t>& ids, bool begins_document) {
    for (size_t i = 0; i < ids.size(); ++i) {
      ids_.push_back(ids[i]);
      starts_.push_back(begins_document && i == 0);
    }
  }
  // One token beyond the chunk is needed: it is the last one's target.
  bool has_chunk() const { return ids_.size() > chunk_; }
  bool empty() const { return ids_.empty(); }
  void run_chunk() { run(std::min(chunk_, ids_.size())); }

 private:
  void run(size_t length) {
    const auto count = static_cast<int64_t>(length);
    const auto ids = at::from_blob(ids_.data(), {1, count}, at::kLong).clone();
    const auto targets = at::full({1, count}, ops::kIgnoreTarget, at::kLong),
               starts = at::zeros({1, count}, at::kBool);
    auto* target = targets.mutable_data_ptr<int64_t>();
    auto* start = starts.mutable_data_ptr<bool>();
    bool any_start = false;
    for (size_t i = 0; i < length; ++i) {
      any_start |= start[i] = starts_[i];
      out_.documents += starts_[i];
      if (i + 1 == ids_.size() || starts_[i + 1]) continue;  // the last of its document
      target[i] = ids_[i + 1];
      ++out_.tokens;
    }
    const auto device = model_.device();
    const auto losses = model_.losses(ids.to(device), targets.to(device), state_,
                                      any_start ? starts.to(device) : at::Tensor());
    out_.nats += losses.to(at::kDouble).sum().item<double>();
    ids_.erase(ids_.begin(), ids_.begin() + count);
    starts_.erase(starts_.begin(), starts_.begin() + count);
  }

  Model& model_;
  size_t chunk_;
  Evaluation& out_;
  ModelState state_;
  std::vector<int64_t> ids_;
  std::vector<bool> starts_;
};

}  // namespace

double Evaluation::bits_per_byte() const { return nats / std::numbers::ln2 / static_cast<double>(bytes); }
double Evaluation::perplexity() const { return std::exp(nats / static_cast<double>(tokens)); }

Evaluation evaluate(Model& model, const Tokenizer& tokenizer, const std::string& path,
                    const EvaluateOptions& options) {
  require(options.chunk >= 1, "chunk {}: must be at least 1", options.chunk);
  require_fitting(model, tokenizer);
  const at::NoGradGuard no_grad;
  TextPieces pieces(path, options.separator);
  Evaluation out;
  Meter meter(model, options.chunk, out);
  const auto run_chunk = [&] {
    if (options.cancelled && options.cancelled()) return out.complete = false;
    meter.run_chunk();
    if (options.progress) options.progress(pieces.bytes_done(), pieces.bytes_total(), out);
    return true;
  };

  TextPiece piece;
  bool begins = false;  // a document whose first token has not come yet
  while (out.complete && pieces.next(piece)) {
    const auto ids = tokenizer.encode(piece.text, {.add_special = false, .parse_special = false});
    begins |= piece.begins_document;
    out.bytes += static_cast<int64_t>(piece.text.size());
    if (begins && !ids.empty()) out.bytes -= static_cast<int64_t>(tokenizer.token_bytes(ids.front()).size());
    meter.add(ids, begins);
    begins &= ids.empty();
    while (meter.has_chunk() && run_chunk()) {
    }
  }
  while (out.complete && !meter.empty() && run_chunk()) {
  }
  require(!out.complete || out.documents > 0, "{}: is empty, there is nothing to predict", path);
  require(!out.complete || out.tokens > 0,
          "{}: has a single token for each document, there is nothing to predict", path);
  return out;
}

}  // namespace weft
