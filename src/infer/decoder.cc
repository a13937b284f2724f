#include "infer/decoder.h"

#include <algorithm>
#include <limits>

namespace weft {

Decoder::Decoder(Model& model, const Tokenizer* tokenizer)
    : model_(model), state_(model.initial_state(1)), logits_(static_cast<size_t>(model.logit_count())) {
  for (int64_t id = 0; tokenizer && id < model.logit_count(); ++id)
    if (!tokenizer->is_token(id)) no_tokens_.push_back(static_cast<size_t>(id));
}

std::span<float> Decoder::prefill(std::span<const int64_t> ids) {
  const auto hidden = model_.run(tensor(ids), state_);  // [1, T, D]
  return read(hidden.slice(1, hidden.size(1) - 1));
}

std::span<float> Decoder::step(int64_t id) { return read(model_.step(tensor({&id, 1}), state_)); }

at::Tensor Decoder::tensor(std::span<const int64_t> ids) const {
  const auto length = static_cast<int64_t>(ids.size());
  const auto here = at::from_blob(const_cast<int64_t*>(ids.data()), {1, length}, at::kLong);
  return model_.device().is_cpu() ? here.clone() : here.to(model_.device());
}

std::span<float> Decoder::read(const at::Tensor& hidden) {  // [1, 1, D]
  const auto row = model_.logits(hidden).reshape(-1).to(at::kCPU, at::kFloat).contiguous();
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
