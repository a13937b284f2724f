#include "infer/decoder.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <limits>

#include "base/error.h"

namespace weft {

Decoder::Decoder(Model& model, const Tokenizer* tokenizer)
    : model_(model), state_(model.initial_state(1)), logits_(static_cast<size_t>(model.logit_count())) {
  for (int64_t id = 0; tokenizer && id < model.logit_count(); ++id)
    if (!tokenizer->is_token(id)) no_tokens_.push_back(static_cast<size_t>(id));
}

std::span<float> Decoder::prefill(std::span<const int64_t> ids) {
  set_state(state());
  const auto hidden = model_.run(tensor(ids), state_);  // [1, T, D]
  return read(model_.logits(hidden.slice(1, hidden.size(1) - 1)));
}

std::span<float> Decoder::step(int64_t id) {
  const auto ids = tensor({&id, 1});
  return read(has_graph() ? graph_->step(ids) : model_.logits(model_.step(ids, state_)));
}

const ModelState& Decoder::state() {
  if (graph_) state_ = graph_->state();
  return state_;
}

void Decoder::set_state(ModelState state) {
  graph_.reset();
  state_ = std::move(state);
}

bool Decoder::has_graph() {
  // Caches are read up to their end, so not too much; a new graph takes a few steps' time.
  constexpr int64_t kRoom = 1024;
  if (graph_ && !graph_->full()) return true;
  if (!model_.device().is_cuda() || !no_graph_.empty()) return false;
  try {
    const auto& before = state();
    graph_.reset();  // a full one: its state is outdated from here on, and its memory is wanted
    graph_ =
        std::make_unique<StepGraph>(model_, before, std::max<int64_t>(before.layers.columns(), 0) + kRoom);
    state_ = {};
    return true;
  } catch (const Unsupported& reason) {
    no_graph_ = reason.what();
  } catch (const c10::OutOfMemoryError&) {
    no_graph_ = "the GPU has no memory left for a second copy of the caches";
  }
  return false;
}

at::Tensor Decoder::tensor(std::span<const int64_t> ids) const {
  const auto length = static_cast<int64_t>(ids.size());
  const auto here = at::from_blob(const_cast<int64_t*>(ids.data()), {1, length}, at::kLong);
  return model_.device().is_cpu() ? here.clone() : here.to(model_.device());
}

std::span<float> Decoder::read(const at::Tensor& logits) {  // [1, 1, V]
  const auto row = logits.reshape(-1).to(at::kCPU, at::kFloat).contiguous();
  std::copy_n(row.const_data_ptr<float>(), logits_.size(), logits_.begin());
  for (const size_t id : no_tokens_) logits_[id] = -std::numeric_limits<float>::infinity();
  return logits_;
}

void TextStream::finish() {
  give(stop_.push(decoder_.finish()));
  give(stop_.finish());
}

bool TextStream::give(const std::string& text) {
  text_ += text;
  if (!text.empty() && on_text_) on_text_(text);
  return stop_.matched();
}

}  // namespace weft
