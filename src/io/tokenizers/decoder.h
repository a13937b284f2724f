// The decoder of a tokenizer.json as a chain of stages through which tokens flow one after another, so that
// text comes out as soon as no later token can change it: ByteLevel, WordPiece, Metaspace, BPEDecoder,
// ByteFallback, Fuse, Strip, CTC, Replace, Sequence.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "io/json_place.h"

namespace weft {

// One stage at work on one text. Pieces (tokens, or what earlier stages have made of them) may come in several
// parts.
class DecodeStage {
 public:
  virtual ~DecodeStage() = default;
  // The next part of a piece; `ends`: the piece is complete with it.
  virtual void add(std::string_view text, bool ends) = 0;
  // No piece follows.
  virtual void finish() { next_->finish(); }
  void then(DecodeStage* next) { next_ = next; }

 protected:
  void pass(std::string_view text, bool ends) { next_->add(text, ends); }
  DecodeStage* next_ = nullptr;
};

// A chain at work.
class Decoding {
 public:
  explicit Decoding(std::vector<std::unique_ptr<DecodeStage>> stages);
  // Text that has become certain, as bytes.
  std::string push(std::string_view token);
  std::string finish();

 private:
  struct End;
  std::vector<std::unique_ptr<DecodeStage>> stages_;
  std::string out_;
};

class TokenDecoder {
 public:
  // A null `place` joins tokens by spaces, as Hugging Face's library does without a decoder. InputError names
  // what is not understood, Unsupported a type that weft lacks.
  explicit TokenDecoder(const JsonPlace& place);
  // Tokens are spelled in byte letters and put together.
  static TokenDecoder of_bytes();

  // Takes the space before punctuation and contractions out of the text, as transformers does with
  // clean_up_tokenization_spaces.
  void clean_up_spaces();
  // `raw_bytes`: bytes that ByteFallback would have to wait for or replace come out as they are.
  Decoding start(bool raw_bytes = false) const;

 private:
  TokenDecoder() = default;
  using Make = std::function<std::unique_ptr<DecodeStage>(bool raw_bytes)>;
  void add(const JsonPlace& place, int depth);
  std::vector<Make> stages_;
};

}  // namespace weft
