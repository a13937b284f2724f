#include "infer/chat.h"

#include <c10/core/GradMode.h>

#include <algorithm>
#include <chrono>

#include "base/error.h"

namespace weft {
namespace {

using ChatClock = std::chrono::steady_clock;

constexpr size_t kSnapshots = 4;  // states kept to go back to; each holds all keys and values of attention

double chat_seconds(ChatClock::time_point start) {
  return std::chrono::duration<double>(ChatClock::now() - start).count();
}

size_t common_length(const std::vector<int64_t>& a, const std::vector<int64_t>& b) {
  const size_t most = std::min(a.size(), b.size());
  return static_cast<size_t>(
      std::mismatch(a.begin(), a.begin() + static_cast<std::ptrdiff_t>(most), b.begin()).first - a.begin());
}

nlohmann::ordered_json message(const char* role, const std::string& content) {
  return {{"role", role}, {"content", content}};
}

}  // namespace

double ChatReply::tokens_per_second() const {
  return ids.size() > 1 && decode_s > 0 ? static_cast<double>(ids.size() - 1) / decode_s : 0.0;
}

Chat::Chat(Model& model, const Tokenizer& tokenizer, ChatPrompt prompt, ChatOptions options)
    : model_(model),
      tokenizer_(tokenizer),
      prompt_(std::move(prompt)),
      options_(std::move(options)),
      decoder_(model, &tokenizer) {
  require(options_.max_tokens >= 1, "max tokens {}: must be at least 1", options_.max_tokens);
  require(options_.prefill_chunk >= 1, "prefill chunk {}: must be at least 1", options_.prefill_chunk);
  options_.sampling.check();
  require_fitting(model, tokenizer);
  for (auto& stop : prompt_.stop()) options_.stop.push_back(std::move(stop));
}

nlohmann::ordered_json Chat::messages() const {
  auto all = nlohmann::ordered_json::array();
  if (!options_.system.empty()) all.push_back(message("system", options_.system));
  for (const auto& each : messages_) all.push_back(each);
  return all;
}

void Chat::reset() { messages_ = nlohmann::ordered_json::array(); }

std::vector<int64_t> Chat::prompt_ids(const nlohmann::ordered_json& messages, bool for_answer) const {
  const auto text = prompt_.render(messages, for_answer, options_.variables);
  // A template writes the special tokens itself; the plain form has those that the tokenizer puts around a text.
  auto ids = tokenizer_.encode(text, {.add_special = prompt_.plain(), .parse_special = true});
  const bool ended = prompt_.plain() && ids.size() > 1 && tokenizer_.end_of_text() == ids.back();
  if (ended) ids.pop_back();
  return ids;
}

// The state goes back to where it had seen a beginning of `prompt`, at least one token short of it; how many tokens of
// it the state then holds.
size_t Chat::rewind(const std::vector<int64_t>& prompt) {
  const size_t common = std::min(common_length(seen_, prompt), prompt.size() - 1);
  while (!snapshots_.empty() && snapshots_.back().tokens > common) snapshots_.pop_back();
  if (common == seen_.size()) return common;
  const size_t kept = snapshots_.empty() ? 0 : snapshots_.back().tokens;
  decoder_.set_state(snapshots_.empty() ? model_.initial_state(1) : snapshots_.back().state);
  seen_.resize(kept);
  return kept;
}

void Chat::keep_snapshot() {
  if (!snapshots_.empty() && snapshots_.back().tokens == seen_.size()) return;
  snapshots_.push_back({seen_.size(), decoder_.state()});
  // The oldest one stays: it is the beginning that conversations share, the system message.
  if (snapshots_.size() > kSnapshots) snapshots_.erase(snapshots_.begin() + 1);
}

// Runs the rest of the prompt; false when cancelled. Snapshots stand at `stable` tokens, behind which the next turn's
// prompt may differ, and at the end.
bool Chat::read_prompt(const std::vector<int64_t>& prompt, size_t stable, ChatReply& reply,
                       std::span<float>& logits) {
  size_t at = rewind(prompt);
  reply.reused = static_cast<int64_t>(at);
  while (at < prompt.size()) {
    if (cancelled()) return false;
    const size_t end = at < stable ? stable : prompt.size();
    const size_t length = std::min(end - at, static_cast<size_t>(options_.prefill_chunk));
    logits = decoder_.prefill(std::span(prompt).subspan(at, length));
    at += length;
    seen_.assign(prompt.begin(), prompt.begin() + static_cast<std::ptrdiff_t>(at));
    reply.read += static_cast<int64_t>(length);
    if (at == stable || at == prompt.size()) keep_snapshot();
  }
  return true;
}

bool Chat::ends(int64_t id) const {
  const auto& ids = options_.end_ids;
  return tokenizer_.end_of_text() == id || std::find(ids.begin(), ids.end(), id) != ids.end();
}

void Chat::answer(std::vector<int64_t> history, std::span<float> logits, ChatReply& reply,
                  const std::function<void(std::string_view)>& on_text) {
  auto sampling = options_.sampling;
  sampling.seed += static_cast<uint64_t>(turns_) * 0x9E3779B97F4A7C15u;
  Sampler sampler(sampling);
  TextStream stream(tokenizer_, options_.stop, on_text, reply.text);
  while (true) {
    const int64_t id = sampler.next(logits, history);
    reply.ids.push_back(id);
    history.push_back(id);
    if (ends(id)) {
      reply.reason = StopReason::end_of_text;
      break;
    }
    if (stream.push(id)) {
      reply.reason = StopReason::stop_string;
      break;
    }
    if (static_cast<int64_t>(reply.ids.size()) >= options_.max_tokens) break;
    if (cancelled()) {
      reply.reason = StopReason::cancelled;
      break;
    }
    logits = decoder_.step(id);
    seen_.push_back(id);
  }
  stream.finish();
}

ChatReply Chat::say(const std::string& text, const std::function<void(std::string_view)>& on_text) {
  const at::NoGradGuard no_grad;
  auto all = messages();
  all.push_back(message("user", text));
  const auto prompt = prompt_ids(all, true);
  require(!prompt.empty(), "the prompt of this conversation is empty: the chat template gives no text");
  const size_t stable = common_length(prompt_ids(all, false), prompt);
  ChatReply reply;
  std::span<float> logits;
  const auto start = ChatClock::now();
  if (!read_prompt(prompt, stable, reply, logits)) {
    reply.reason = StopReason::cancelled;
    return reply;
  }
  reply.first_token_s = chat_seconds(start);
  const auto first = ChatClock::now();
  answer(prompt, logits, reply, on_text);
  reply.decode_s = chat_seconds(first);
  reply.state_bytes = decoder_.state_bytes();
  if (prompt_.plain()) reply.text.erase(0, reply.text.find_first_not_of(' '));
  messages_.push_back(message("user", text));
  messages_.push_back(message("assistant", reply.text));
  ++turns_;
  return reply;
}

}  // namespace weft
