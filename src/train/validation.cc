#include "train/validation.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <numbers>

#include "base/error.h"
#include "ops/loss/loss.h"

namespace weft {
namespace {

// Window `index` as one row of a batch. Returns the bytes of text of the scored tokens.
class Windows {
 public:
  Windows(const TokenFile& file, const Tokenizer& tokenizer, const ValidationOptions& options)
      : file_(file), length_(options.length), overlap_(options.overlap) {
    bytes_.resize(static_cast<size_t>(tokenizer.vocab_size()));
    for (int64_t id = 0; id < tokenizer.vocab_size(); ++id)
      if (tokenizer.is_token(id) && !tokenizer.is_special(id))
        bytes_[static_cast<size_t>(id)] = static_cast<int64_t>(tokenizer.token_bytes(id).size());
  }

  int64_t count() const {
    const int64_t stride = length_ - overlap_, targets = std::max<int64_t>(file_.size() - 1, 1);
    return targets <= length_ ? 1 : 1 + (targets - length_ + stride - 1) / stride;
  }

  void fill(int64_t index, int64_t* tokens, int64_t* targets, bool* starts, Validation& sum) const {
    const int64_t begin = index * (length_ - overlap_);
    const int64_t have = std::min(length_, file_.size() - begin);
    file_.read(begin, have, tokens);
    int64_t document = file_.first_document_from(begin);
    for (; document < file_.documents() && file_.start(document) < begin + have; ++document)
      starts[file_.start(document) - begin] = true;
    starts[0] = true;
    int64_t after = 0;  // the token behind the window
    const bool more = begin + have < file_.size() &&
                      (document >= file_.documents() || file_.start(document) > begin + have);
    if (more) file_.read(begin + have, 1, &after);
    for (int64_t t = index ? overlap_ : 0; t < have; ++t) {
      if (t + 1 < have ? starts[t + 1] : !more) continue;
      targets[t] = t + 1 < have ? tokens[t + 1] : after;
      ++sum.tokens;
      sum.bytes += bytes_.at(static_cast<size_t>(targets[t]));
    }
  }

 private:
  const TokenFile& file_;
  int64_t length_, overlap_;
  std::vector<int64_t> bytes_;
};

// Dropout and the like are off while this lives.
class Inference {
 public:
  explicit Inference(Model& model) : model_(model), training_(model.training()) { model.set_training(false); }
  ~Inference() { model_.set_training(training_); }
  Inference(const Inference&) = delete;
  Inference& operator=(const Inference&) = delete;

 private:
  Model& model_;
  bool training_;
};

}  // namespace

double Validation::bits_per_byte() const {
  return bytes ? nats / std::numbers::ln2 / static_cast<double>(bytes) : 0;
}

Validation validate(Model& model, const TokenFile& file, const Tokenizer& tokenizer,
                    const ValidationOptions& options, const std::function<void(double)>& progress) {
  require(
      options.length >= 1 && options.overlap >= 0 && options.overlap < options.length && options.rows >= 1,
      "validation: windows of {} tokens cannot overlap by {}", options.length, options.overlap);
  at::NoGradGuard no_grad;
  const Inference inference(model);
  const Windows windows(file, tokenizer, options);
  const int64_t wanted =
      options.batches > 0 ? std::min(windows.count(), options.batches * options.rows) : windows.count();
  Validation sum;
  for (int64_t done = 0; done < wanted;) {
    const int64_t rows = std::min(options.rows, wanted - done);
    const auto tokens = at::zeros({rows, options.length}, at::kLong);  // [B, T]
    const auto targets = at::full({rows, options.length}, ops::kIgnoreTarget, at::kLong);
    const auto starts = at::zeros({rows, options.length}, at::kBool);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t at = row * options.length;
      windows.fill((done + row) * windows.count() / wanted, tokens.data_ptr<int64_t>() + at,
                   targets.data_ptr<int64_t>() + at, starts.data_ptr<bool>() + at, sum);
    }
    const auto device = model.device();
    sum.nats += model.losses(tokens.to(device), targets.to(device), starts.to(device))
                    .sum(at::kDouble)
                    .item<double>();
    done += rows;
    if (progress) progress(static_cast<double>(done) / static_cast<double>(wanted));
  }
  return sum;
}

}  // namespace weft
