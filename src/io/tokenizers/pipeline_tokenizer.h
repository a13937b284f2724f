// A tokenizer put together from parts, in the order in which text passes them:
//   added tokens cut out -> normalizer -> pre-tokenizer (pieces) -> model -> ids put around
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "io/tokenizers/added_tokens.h"
#include "io/tokenizers/decoder.h"
#include "io/tokenizers/normalizer.h"
#include "io/tokenizers/post_processor.h"
#include "io/tokenizers/pre_tokenizer.h"
#include "io/tokenizers/token_model.h"
#include "io/tokenizers/tokenizer.h"
#include "io/tokenizers/tokenizer_config.h"

namespace weft {

struct TokenizerParts {
  std::string source;  // name of the file in messages
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  std::unique_ptr<const TokenModel> model;
  std::vector<AddedToken> added;
  SpecialIds around;
  TokenDecoder decoder = TokenDecoder::of_bytes();
  std::string definition;    // what save() writes
  std::string kind = "bpe";  // begins the fingerprint
};

class PipelineTokenizer final : public Tokenizer {
 public:
  // InputError for ids and names that contradict each other. Named tokens of the configuration become special
  // tokens; eos_token, if given, must be in the vocabulary.
  PipelineTokenizer(TokenizerParts parts, TokenizerConfig config);
  ~PipelineTokenizer() override;

  int64_t vocab_size() const override;
  std::vector<int64_t> encode(std::string_view text, const EncodeOptions& options = {}) const override;
  std::string_view token_bytes(int64_t id) const override;
  bool is_token(int64_t id) const override;
  bool is_special(int64_t id) const override;
  std::optional<int64_t> find(std::string_view token) const override;
  std::optional<int64_t> end_of_text() const override;
  std::string fingerprint() const override;
  void save(const std::string& path) const override;
  std::unique_ptr<TextDecoder> decoder(bool skip_special) const override;

 private:
  struct State;
  std::unique_ptr<const State> state_;
};

}  // namespace weft
