// The stages that decoders are made of.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "io/tokenizers/decoder.h"
#include "io/tokenizers/metaspace.h"
#include "io/tokenizers/regex.h"

namespace weft {

// Replaces a string in text that comes in parts; keeps back what may still become a match.
class StreamedReplace {
 public:
  StreamedReplace(std::string from, std::string to) : from_(std::move(from)), to_(std::move(to)) {}
  std::string push(std::string_view text);
  std::string finish();

 private:
  std::string from_, to_, kept_;
};

// Base of stages that need to see a piece as a whole.
class WholePieces : public DecodeStage {
 public:
  void add(std::string_view text, bool ends) final;
  void finish() override;

 protected:
  virtual void piece(std::string text) = 0;

 private:
  std::string kept_;
};

// Letters to bytes, all in one piece. A piece that is not all letters stays as it is.
class ByteLevelStage final : public WholePieces {
 public:
  void finish() override;

 protected:
  void piece(std::string text) override;
};

class FuseStage final : public DecodeStage {
 public:
  void add(std::string_view text, bool) override { pass(text, false); }
  void finish() override;
};

// A space between pieces.
class SpacedStage final : public DecodeStage {
 public:
  void add(std::string_view text, bool ends) override;

 private:
  bool first_ = true, inside_ = false;
};

// A piece with `prefix` goes on with the word before it, any other begins a new one.
class WordPieceStage final : public WholePieces {
 public:
  WordPieceStage(std::string prefix, bool cleanup) : prefix_(std::move(prefix)), cleanup_(cleanup) {}

 protected:
  void piece(std::string text) override;

 private:
  std::string prefix_;
  bool cleanup_, first_ = true;
};

// The replacement becomes a space, or nothing in the first piece when the scheme puts one there.
class MetaspaceStage final : public DecodeStage {
 public:
  explicit MetaspaceStage(const Metaspace& meta);
  void add(std::string_view text, bool ends) override;
  void finish() override;

 private:
  StreamedReplace first_, others_;
  bool in_first_ = true;
};

// `suffix` becomes a space, in the last piece nothing.
class BpeSuffixStage final : public WholePieces {
 public:
  explicit BpeSuffixStage(std::string suffix) : suffix_(std::move(suffix)) {}
  void finish() override;

 protected:
  void piece(std::string text) override;

 private:
  std::string suffix_, last_;
  bool any_ = false;
};

// "<0x41>" to its byte. Bytes in a row that are not UTF-8 together become U+FFFD each; `raw` passes them on.
class ByteFallbackStage final : public WholePieces {
 public:
  explicit ByteFallbackStage(bool raw) : raw_(raw) {}
  void finish() override;

 protected:
  void piece(std::string text) override;

 private:
  void flush();
  bool raw_;
  std::string bytes_;
};

// Takes up to so many of a character away from the begin and the end of every piece.
class StripStage final : public DecodeStage {
 public:
  StripStage(std::string content, size_t start, size_t stop)
      : content_(std::move(content)), start_(start), stop_(stop), left_(start) {}
  void add(std::string_view text, bool ends) override;
  void finish() override;

 private:
  bool strip_begin(bool ends);
  size_t certain() const;
  std::string content_, kept_;
  size_t start_, stop_, left_;  // left_: how many may still go from the begin of this piece
};

// Connectionist temporal classification: one of several equal pieces in a row; pads and empty ones are dropped.
class CtcStage final : public WholePieces {
 public:
  CtcStage(std::string pad, std::string delimiter, bool cleanup)
      : pad_(std::move(pad)), delimiter_(std::move(delimiter)), cleanup_(cleanup) {}

 protected:
  void piece(std::string text) override;

 private:
  std::string pad_, delimiter_, previous_;
  bool cleanup_, any_ = false;
};

class ReplaceStage final : public DecodeStage {
 public:
  ReplaceStage(std::string from, std::string to) : replace_(std::move(from), std::move(to)) {}
  void add(std::string_view text, bool ends) override;
  void finish() override;

 private:
  StreamedReplace replace_;
};

class RegexReplaceStage final : public WholePieces {
 public:
  RegexReplaceStage(std::shared_ptr<const Regex> pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}

 protected:
  void piece(std::string text) override;

 private:
  std::shared_ptr<const Regex> pattern_;
  std::string content_;
};

}  // namespace weft
