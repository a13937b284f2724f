// Tokenizers of SentencePiece. Kudo and Richardson 2018, arXiv:1808.06226.
#pragma once

#include <memory>
#include <string>

#include "io/tokenizers/sentencepiece_model.h"
#include "io/tokenizers/tokenizer.h"
#include "io/tokenizers/tokenizer_config.h"

namespace weft {

// Gives the ids and texts of the sentencepiece library: unigram, BPE, word and character models; normalization
// by table; user defined pieces that are never cut; byte fallback; unused pieces. Beyond the library: with
// parse_special, control pieces are found in the text; add_special puts bos and eos around where the
// configuration says add_bos_token or add_eos_token. Control pieces decode to nothing.
// `definition` is what save() writes. Throws as check_sentencepiece_model does.
std::shared_ptr<const Tokenizer> make_sentencepiece_tokenizer(SentencePieceModel model,
                                                              std::string definition,
                                                              const std::string& source,
                                                              const TokenizerConfig& config = {});

}  // namespace weft
