#include "infer/generate.h"

#include <c10/core/GradMode.h>

#include <chrono>
#include <limits>

#include "base/error.h"
#include "infer/stop_strings.h"

namespace weft {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::vector<int64_t> prompt_ids(const Tokenizer& tokenizer, std::string_view prompt) {
  auto ids = tokenizer.encode(prompt, {.add_special = true, .parse_special = true});
  if (ids.empty() && tokenizer.end_of_text()) ids.push_back(*tokenizer.end_of_text());
  require(!ids.empty(),
          "the prompt is empty and the tokenizer has no end-of-text token to begin with: give a prompt");
  return ids;
}

// One sequence on its way through the model.
class Decoder {
 public:
  Decoder(Model& model, const Tokenizer& tokenizer)
      : model_(model), state_(model.initial_state(1)), logits_(static_cast<size_t>(model.options().vocab)) {
    for (int64_t id = 0; id < model.options().vocab; ++id)
      if (!tokenizer.is_token(id)) no_tokens_.push_back(static_cast<size_t>(id));
  }

  // ids [T] -> the logits after the last of them.
  std::span<float> prefill(std::span<const int64_t> ids) {
    const auto hidden = model_.run(tensor(ids), state_);  // [1, T, D]
    return read(hidden.slice(1, hidden.size(1) - 1));
  }
  std::span<float> step(int64_t id) { return read(model_.step(tensor({&id, 1}), state_)); }
  int64_t state_bytes() const { return state_.layers.bytes(); }

 private:
  at::Tensor tensor(std::span<const int64_t> ids) const {
    const auto length = static_cast<int64_t>(ids.size());
    const auto here = at::from_blob(const_cast<int64_t*>(ids.data()), {1, length}, at::kLong);
    return model_.device().is_cpu() ? here.clone() : here.to(model_.device());
  }

  std::span<float> read(const at::Tensor& hidden) {  // [1, 1, D]
    const auto row = model_.logits(hidden).reshape(-1).to(at::kCPU, at::kFloat).contiguous();
    std::copy_n(row.const_data_ptr<float>(), logits_.size(), logits_.begin());
    for (const size_t id : no_tokens_) logits_[id] = -std::numeric_limits<float>::infinity();
    return logits_;
  }

  Model& model_;
  ModelState state_;
  std::vector<float> logits_;
  std::vector<size_t> no_tokens_;
};

// Ids to text that may be shown.
class TextStream {
 public:
  TextStream(const Tokenizer& tokenizer, const std::vector<std::string>& stop,
             const std::function<void(std::string_view)>& on_text, std::string& text)
      : decoder_(tokenizer, true), stop_(stop), on_text_(on_text), text_(text) {}
  bool push(int64_t id) { return give(stop_.push(decoder_.push(id))); }
  void finish() {
    give(stop_.push(decoder_.finish()));
    give(stop_.finish());
  }

 private:
  bool give(const std::string& text) {
    text_ += text;
    if (!text.empty() && on_text_) on_text_(text);
    return stop_.matched();
  }
  StreamDecoder decoder_;
  StopStrings stop_;
  const std::function<void(std::string_view)>& on_text_;
  std::string& text_;
};

void check(const Model& model, const Tokenizer& tokenizer, const GenerateOptions& options) {
  require(options.max_tokens >= 0, "max tokens {}: must be at least 0", options.max_tokens);
  require(options.prefill_chunk >= 1, "prefill chunk {}: must be at least 1", options.prefill_chunk);
  options.sampling.check();
  require_fitting(model, tokenizer);
}

// One generation: fills `out`.
class Run {
 public:
  Run(Model& model, const Tokenizer& tokenizer, const GenerateOptions& options,
      const std::function<void(std::string_view)>& on_text, Generation& out)
      : tokenizer_(tokenizer),
        options_(options),
        out_(out),
        decoder_(model, tokenizer),
        sampler_(options.sampling),
        stream_(tokenizer, options.stop, on_text, out.text) {}

  void go(std::vector<int64_t> prompt) {
    seen_ = std::move(prompt);
    out_.prompt_tokens = static_cast<int64_t>(seen_.size());
    const auto start = Clock::now();
    auto going = options_.max_tokens > 0 && prefill() && draw();
    out_.first_token_s = seconds_since(start);
    const auto first = Clock::now();
    while (going && static_cast<int64_t>(out_.ids.size()) < options_.max_tokens) going = step() && draw();
    out_.decode_s = seconds_since(first);
    stream_.finish();
    out_.state_bytes = decoder_.state_bytes();
  }

 private:
  bool end(StopReason reason) {
    out_.reason = reason;
    return false;
  }
  bool cancelled() { return options_.cancelled && options_.cancelled(); }

  // Each of these returns false when the generation has ended.
  bool prefill() {
    for (int64_t begin = 0; begin < out_.prompt_tokens; begin += options_.prefill_chunk) {
      if (cancelled()) return end(StopReason::cancelled);
      const auto length = std::min(options_.prefill_chunk, out_.prompt_tokens - begin);
      logits_ =
          decoder_.prefill(std::span(seen_).subspan(static_cast<size_t>(begin), static_cast<size_t>(length)));
    }
    return true;
  }
  bool step() {
    if (cancelled()) return end(StopReason::cancelled);
    logits_ = decoder_.step(out_.ids.back());
    return true;
  }
  bool draw() {
    const int64_t id = sampler_.next(logits_, seen_);
    out_.ids.push_back(id);
    seen_.push_back(id);
    if (options_.stop_at_end_of_text && tokenizer_.end_of_text() == id) return end(StopReason::end_of_text);
    return stream_.push(id) ? end(StopReason::stop_string) : true;
  }

  const Tokenizer& tokenizer_;
  const GenerateOptions& options_;
  Generation& out_;
  Decoder decoder_;
  Sampler sampler_;
  TextStream stream_;
  std::vector<int64_t> seen_;  // prompt and output
  std::span<float> logits_;    // after the last token
};

}  // namespace

std::string_view stop_reason_name(StopReason reason) {
  constexpr std::string_view names[] = {"max tokens", "end of text", "stop string", "cancelled"};
  return names[static_cast<size_t>(reason)];
}

double Generation::tokens_per_second() const {
  return ids.size() > 1 && decode_s > 0 ? static_cast<double>(ids.size() - 1) / decode_s : 0.0;
}

void require_fitting(const Model& model, const Tokenizer& tokenizer) {
  require(tokenizer.vocab_size() <= model.options().vocab,
          "the tokenizer has {} tokens but the model '{}' only {}: it belongs to another model",
          tokenizer.vocab_size(), model.options().name, model.options().vocab);
}

Generation generate(Model& model, const Tokenizer& tokenizer, std::string_view prompt,
                    const GenerateOptions& options, const std::function<void(std::string_view)>& on_text) {
  check(model, tokenizer, options);
  const at::NoGradGuard no_grad;
  Generation out;
  Run(model, tokenizer, options, on_text, out).go(prompt_ids(tokenizer, prompt));
  return out;
}

}  // namespace weft
