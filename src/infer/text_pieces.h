// A text file of any length as pieces of bounded size, cut where the usual tokenizers begin a new piece
// anyway.
#pragma once

#include <cstdint>
#include <fstream>
#include <string>

namespace weft {

struct TextPiece {
  std::string text;
  bool begins_document = false;
};

// Reads a file once from begin to end in constant memory. `separator` cuts documents as in
// io/datasets/text_source.h ("": the file is one document). Pieces have at most 64 KiB and end before a space
// between two words; where there is no such place, at the end of a character.
class TextPieces {
 public:
  explicit TextPieces(const std::string& path, std::string separator = "");
  // The next piece, never empty; false at the end. InputError when the file cannot be read.
  bool next(TextPiece& piece);
  int64_t bytes_done() const { return done_; }
  int64_t bytes_total() const { return total_; }

 private:
  void fill();
  void take(size_t bytes);
  std::string path_, separator_;
  std::ifstream file_;
  std::string buffer_;
  bool at_start_ = true;  // of a document
  int64_t done_ = 0, total_ = 0;
};

}  // namespace weft
