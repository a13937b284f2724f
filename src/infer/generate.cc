#include "infer/generate.h"

#include <c10/core/GradMode.h>

#include <algorithm>
#include <chrono>

#include "base/error.h"
#include "infer/decoder.h"

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

void check(const GenerateOptions& options) {
  require(options.max_tokens >= 0, "max tokens {}: must be at least 0", options.max_tokens);
  require(options.prefill_chunk >= 1, "prefill chunk {}: must be at least 1", options.prefill_chunk);
  options.sampling.check();
}

// One generation: fills `out`.
class Run {
 public:
  // Takes an id that was drawn; false when it ends the generation, which sets the reason.
  using Take = std::function<bool(int64_t id, StopReason& reason)>;

  Run(Model& model, const Tokenizer* tokenizer, const GenerateOptions& options, Take take, Generation& out)
      : options_(options),
        out_(out),
        decoder_(model, tokenizer),
        sampler_(options.sampling),
        take_(std::move(take)) {}

  void go(std::vector<int64_t> prompt) {
    seen_ = std::move(prompt);
    out_.prompt_tokens = static_cast<int64_t>(seen_.size());
    const auto start = Clock::now();
    auto going = options_.max_tokens > 0 && prefill() && draw();
    out_.first_token_s = seconds_since(start);
    const auto first = Clock::now();
    while (going && static_cast<int64_t>(out_.ids.size()) < options_.max_tokens) going = step() && draw();
    out_.decode_s = seconds_since(first);
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
    return take_(id, out_.reason);
  }

  const GenerateOptions& options_;
  Generation& out_;
  Decoder decoder_;
  Sampler sampler_;
  Take take_;
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
  check(options);
  require_fitting(model, tokenizer);
  const at::NoGradGuard no_grad;
  Generation out;
  TextStream stream(tokenizer, options.stop, on_text, out.text);
  const auto take = [&](int64_t id, StopReason& reason) {
    const auto& ends = options.end_ids;
    const bool is_end =
        tokenizer.end_of_text() == id || std::find(ends.begin(), ends.end(), id) != ends.end();
    const bool over = options.stop_at_end_of_text && is_end;
    if (over) reason = StopReason::end_of_text;
    if (over || !stream.push(id)) return !over;
    reason = StopReason::stop_string;
    return false;
  };
  Run(model, &tokenizer, options, take, out).go(prompt_ids(tokenizer, prompt));
  stream.finish();
  return out;
}

Generation generate_ids(Model& model, const std::vector<int64_t>& prompt, const GenerateOptions& options,
                        const std::function<void(int64_t)>& on_token) {
  check(options);
  require(!prompt.empty(), "the prompt has no ids: give at least one");
  for (const auto id : prompt)
    require(id >= 0 && id < model.options().vocab, "id {} is outside the model's vocabulary of {}", id,
            model.options().vocab);
  const at::NoGradGuard no_grad;
  Generation out;
  const auto take = [&](int64_t id, StopReason&) {
    if (on_token) on_token(id);
    return true;
  };
  Run(model, nullptr, options, take, out).go(prompt);
  return out;
}

}  // namespace weft
