// Byte-pair encoding as Hugging Face's tokenizer.json describes it, for byte-level vocabularies (GPT-2,
// GPT-NeoX, Llama 3, Qwen, DeepSeek...). Sennrich et al. 2016, "Neural Machine Translation of Rare Words with
// Subword Units", arXiv:1508.07909.
//   text -> added tokens cut out -> normalizer -> pre-tokenizer (pieces) -> bytes as letters -> merges by
//   rank -> ids
#pragma once

#include <memory>
#include <string>

#include "io/tokenizers/tokenizer.h"

namespace weft {

// Understood: model BPE (merges as "a b" or ["a","b"], ignore_merges, byte_fallback, unk_token, fuse_unk);
// added tokens with all flags; normalizers NFC, NFD, NFKC, NFKD, Prepend, Replace (string), Sequence;
// pre-tokenizers ByteLevel (one is needed), Split, Digits, Punctuation, Sequence; post-processors ByteLevel,
// TemplateProcessing (single text), BertProcessing, RobertaProcessing, Sequence; decoder ByteLevel.
// `truncation` and `padding` are not applied. Anything else is an InputError or Unsupported with its place in
// the JSON. Differs from Hugging Face's library: a byte without a token is an error where that drops it;
// Unicode tables are those of the installed ICU and PCRE2.
class BpeTokenizer final : public Tokenizer {
 public:
  // `json`: the text of a tokenizer.json; `source`: its name in messages; `end_of_text`: the text of the
  // end-of-text token, or "" to take the first of the usual names that is a special token.
  BpeTokenizer(const std::string& json, const std::string& source, const std::string& end_of_text = "");
  ~BpeTokenizer() override;

  int64_t vocab_size() const override;
  std::vector<int64_t> encode(std::string_view text, const EncodeOptions& options = {}) const override;
  std::string_view token_bytes(int64_t id) const override;
  bool is_token(int64_t id) const override;
  bool is_special(int64_t id) const override;
  std::optional<int64_t> find(std::string_view token) const override;
  std::optional<int64_t> end_of_text() const override;
  std::string fingerprint() const override;
  void save(const std::string& path) const override;

 private:
  struct Parts;
  std::unique_ptr<const Parts> parts_;
};

}  // namespace weft
