// What stands in a SentencePiece model file (sentencepiece_model.proto), as far as encoding and decoding need
// it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace weft {

struct SentencePieceModel {
  enum class Kind { unigram = 1, bpe = 2, word = 3, character = 4 };
  enum class Type { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };
  struct Piece {
    std::string text;  // valid UTF-8, not empty
    float score = 0;
    Type type = Type::normal;
  };

  std::vector<Piece> pieces;  // by id
  Kind kind = Kind::unigram;
  bool byte_fallback = false, whitespace_as_suffix = false;
  bool add_dummy_prefix = true, remove_extra_whitespaces = true, escape_whitespaces = true;
  std::string charsmap;  // precompiled, see charsmap.h; "" leaves characters alone
  std::string unknown_surface = " \xE2\x81\x87 ", bos = "<s>", eos = "</s>";
};

// InputError, with file and field, for bytes that are no such model: without pieces, without exactly one
// unknown piece, with a piece that is there twice or is empty, or byte_fallback without all 256 bytes.
SentencePieceModel parse_sentencepiece_model(std::string_view file, const std::string& source);
// The checks of parse_sentencepiece_model.
void check_sentencepiece_model(const SentencePieceModel& model, const std::string& source);
std::string write_sentencepiece_model(const SentencePieceModel& model);

}  // namespace weft
