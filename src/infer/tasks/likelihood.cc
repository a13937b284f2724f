#include "infer/tasks/likelihood.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>

#include <algorithm>

#include "base/error.h"
#include "infer/generate.h"
#include "io/chat_template/text_functions.h"
#include "ops/loss/loss.h"

namespace weft {
namespace {

at::Tensor row_of(const std::vector<int64_t>& ids, at::Device device) {
  return at::from_blob(const_cast<int64_t*>(ids.data()), {1, static_cast<int64_t>(ids.size())}, at::kLong)
      .clone()
      .to(device);
}

at::Tensor log_probabilities(const at::Tensor& logits) {
  const auto wide = logits.scalar_type() == at::kDouble ? logits : logits.to(at::kFloat);
  return at::log_softmax(wide, -1).to(at::kCPU);
}

}  // namespace

LikelihoodScorer::LikelihoodScorer(Model& model, const Tokenizer& tokenizer, LikelihoodOptions options)
    : model_(model), tokenizer_(tokenizer), options_(std::move(options)) {
  require(options_.max_length >= 0, "max length {}: must be at least 0", options_.max_length);
  require(options_.batch >= 1 && options_.chunk >= 1, "batch and chunk must be at least 1");
  require_fitting(model, tokenizer);
}

int64_t LikelihoodScorer::prefix_id() const {
  const auto id = options_.prefix_id ? options_.prefix_id : tokenizer_.end_of_text();
  require(id.has_value(),
          "the tokenizer has neither a beginning-of-text nor an end-of-text token to stand before a text");
  return *id;
}

std::vector<int64_t> LikelihoodScorer::encode(const std::string& text) const {
  return tokenizer_.encode(text, {.add_special = options_.add_special, .parse_special = true});
}

EncodedPair LikelihoodScorer::encode(const std::string& context, const std::string& continuation) const {
  if (context.empty()) {
    auto ids = tokenizer_.encode(continuation, {.add_special = false, .parse_special = true});
    require(!ids.empty(), "the continuation '{}' has no tokens", continuation);
    if (ids.front() != prefix_id()) return {{prefix_id()}, std::move(ids)};
    return {{ids.front()}, {ids.begin() + 1, ids.end()}};
  }
  const auto kept = jinja::strip(context, nullptr, false, true);
  const auto moved = context.substr(kept.size()) + continuation, before = std::string(kept);
  const auto whole = encode(before + moved);
  EncodedPair pair{encode(before), {}};
  if (pair.context.empty()) pair.context = {prefix_id()};  // blanks only, which all moved
  const auto length = before.empty() ? 0 : pair.context.size();
  require(whole.size() > length, "the continuation '{}' has no tokens of its own behind its context",
          continuation);
  pair.continuation.assign(whole.begin() + static_cast<std::ptrdiff_t>(length), whole.end());
  return pair;
}

void LikelihoodScorer::run_context(const std::vector<int64_t>& ids) {
  if (ids == context_ && next_.defined()) return;
  context_.clear();
  state_ = model_.initial_state(1);
  const auto all = row_of(ids, model_.device());
  at::Tensor last;
  for (int64_t begin = 0; begin < all.size(1); begin += options_.chunk) {
    const auto hidden =
        model_.run(all.slice(1, begin, std::min(all.size(1), begin + options_.chunk)), state_);
    last = hidden.select(1, hidden.size(1) - 1);  // [1, D]
  }
  next_ = log_probabilities(model_.logits(last)).reshape(-1);
  context_ = ids;
}

// The continuations as rows of one batch behind the context's state, padded on the right, where nothing looks.
std::vector<Likelihood> LikelihoodScorer::score_batch(
    const std::vector<std::vector<int64_t>>& continuations) const {
  const auto rows = static_cast<int64_t>(continuations.size());
  size_t longest = 0;
  for (const auto& each : continuations) longest = std::max(longest, each.size());
  const auto steps = static_cast<int64_t>(longest) - 1;
  at::Tensor hidden;  // [rows, steps, D]
  if (steps > 0) {
    const auto ids = at::zeros({rows, steps}, at::kLong);
    for (int64_t row = 0; row < rows; ++row) {
      const auto& each = continuations[static_cast<size_t>(row)];
      std::copy(each.begin(), each.end() - 1, ids.mutable_data_ptr<int64_t>() + row * steps);
    }
    auto state = state_.select(at::zeros({rows}, at::kLong).to(model_.device()));
    hidden = model_.run(ids.to(model_.device()), state);
  }
  std::vector<Likelihood> out;
  for (int64_t row = 0; row < rows; ++row) {
    const auto& each = continuations[static_cast<size_t>(row)];
    const auto count = static_cast<int64_t>(each.size());
    auto table = next_.unsqueeze(0);  // [count, V]
    if (count > 1)
      table =
          at::cat({table, log_probabilities(model_.logits(hidden.select(0, row).slice(0, 0, count - 1)))});
    const auto targets = row_of(each, at::kCPU).squeeze(0);
    out.push_back({table.gather(1, targets.unsqueeze(1)).to(at::kDouble).sum().item<double>(),
                   table.argmax(-1).eq(targets).all().item<bool>()});
  }
  return out;
}

// Too long together: the context loses its beginning, by as much as this continuation asks.
Likelihood LikelihoodScorer::score_truncated(const EncodedPair& pair) {
  const auto room = options_.max_length + 1 - static_cast<int64_t>(pair.continuation.size());
  require(room >= 1, "a continuation has {} tokens, more than the {} that the model may see",
          pair.continuation.size(), options_.max_length);
  const auto kept = std::min(room, static_cast<int64_t>(pair.context.size()));
  run_context({pair.context.end() - kept, pair.context.end()});
  return score_batch({pair.continuation})[0];
}

std::vector<Likelihood> LikelihoodScorer::score(const std::string& context,
                                                const std::vector<std::string>& continuations) {
  const at::NoGradGuard no_grad;
  std::vector<Likelihood> out;
  std::vector<std::vector<int64_t>> batch;
  std::vector<int64_t> before;
  const auto flush = [&] {
    if (batch.empty()) return;
    run_context(before);
    for (const auto& each : score_batch(batch)) out.push_back(each);
    batch.clear();
  };
  for (const auto& continuation : continuations) {
    auto pair = encode(context, continuation);
    const auto length = static_cast<int64_t>(pair.context.size() + pair.continuation.size()) - 1;
    if (options_.max_length > 0 && length > options_.max_length) {
      flush();
      out.push_back(score_truncated(pair));
      continue;
    }
    if (pair.context != before || static_cast<int64_t>(batch.size()) >= options_.batch) flush();
    before = std::move(pair.context);
    batch.push_back(std::move(pair.continuation));
  }
  flush();
  return out;
}

double LikelihoodScorer::score_text(const std::string& text) {
  const at::NoGradGuard no_grad;
  auto ids = encode(text);
  require(!ids.empty(), "a text has no tokens");
  ids.insert(ids.begin(), prefix_id());
  const auto total = static_cast<int64_t>(ids.size()) - 1;  // to predict
  const auto all = row_of(ids, at::kCPU);
  double sum = 0;
  // Predicts ids[begin .. end) from ids[from .. end - 1), the state carried on.
  const auto run = [&](int64_t from, int64_t begin, int64_t end, ModelState& state) {
    const auto targets = all.slice(1, from + 1, end).clone();
    targets.slice(1, 0, begin - from - 1).fill_(ops::kIgnoreTarget);
    const auto losses = model_.losses(all.slice(1, from, end - 1).contiguous().to(model_.device()),
                                      targets.to(model_.device()), state);
    sum -= losses.to(at::kDouble).sum().item<double>();
  };
  if (options_.max_length == 0) {
    auto state = model_.initial_state(1);
    for (int64_t done = 0; done < total; done += options_.chunk)
      run(done, done + 1, std::min(done + options_.chunk, total) + 1, state);
    return sum;
  }
  for (int64_t done = 0; done < total;) {
    const auto end = std::min(done + options_.max_length, total);
    auto state = model_.initial_state(1);
    run(std::max<int64_t>(end - options_.max_length, 0), done + 1, end + 1, state);
    done = end;
  }
  return sum;
}

}  // namespace weft
