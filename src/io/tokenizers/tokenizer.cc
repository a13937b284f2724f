#include "io/tokenizers/tokenizer.h"

#include "io/tokenizers/utf8.h"

namespace weft {

namespace {

// Bytes of one id after another.
class PlainDecoder final : public TextDecoder {
 public:
  PlainDecoder(const Tokenizer& tokenizer, bool skip_special)
      : tokenizer_(&tokenizer), skip_special_(skip_special) {}
  std::string push(int64_t id) override {
    const std::string_view bytes = tokenizer_->token_bytes(id);
    return skip_special_ && tokenizer_->is_special(id) ? "" : std::string(bytes);
  }
  std::string finish() override { return ""; }

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
};

}  // namespace

std::unique_ptr<TextDecoder> Tokenizer::decoder(bool skip_special) const {
  return std::make_unique<PlainDecoder>(*this, skip_special);
}

std::string Tokenizer::decode(const std::vector<int64_t>& ids, bool skip_special) const {
  const auto decoding = decoder(skip_special);
  std::string text;
  for (const int64_t id : ids) text += decoding->push(id);
  return text + decoding->finish();
}

std::string StreamDecoder::push(int64_t id) {
  pending_ += decoder_->push(id);
  size_t at = 0;
  while (at < pending_.size()) {
    const Utf8Step step = utf8_step(pending_, at);
    if (step.kind == Utf8Step::Kind::incomplete) break;
    at += step.bytes;
  }
  std::string ready = to_utf8(std::string_view(pending_).substr(0, at));
  pending_.erase(0, at);
  return ready;
}

std::string StreamDecoder::finish() {
  std::string rest = to_utf8(pending_ + decoder_->finish());
  pending_.clear();
  decoder_ = tokenizer_->decoder(skip_special_);
  return rest;
}

}  // namespace weft
