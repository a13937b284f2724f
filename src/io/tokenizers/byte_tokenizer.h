// Every byte is its own id; 256 ends a document. The fitting tokenizer for byte-level models and for tests.
#pragma once

#include "io/tokenizers/tokenizer.h"

namespace weft {

class ByteTokenizer final : public Tokenizer {
 public:
  static constexpr int64_t kEndOfText = 256;  // decodes to nothing

  int64_t vocab_size() const override { return 257; }
  std::vector<int64_t> encode(std::string_view text, const EncodeOptions& options = {}) const override;
  std::string_view token_bytes(int64_t id) const override;
  bool is_token(int64_t id) const override { return id >= 0 && id <= kEndOfText; }
  bool is_special(int64_t id) const override { return id == kEndOfText; }
  std::optional<int64_t> find(std::string_view token) const override;
  std::optional<int64_t> end_of_text() const override { return kEndOfText; }
  std::string fingerprint() const override { return "bytes-1"; }
  void save(const std::string& path) const override;
};

}  // namespace weft
