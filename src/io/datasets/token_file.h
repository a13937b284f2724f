// Tokenized text on disk, mapped into memory: a header of 128 bytes, the ids as u16 or u32, the document
// starts as u64. All numbers are little-endian.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/files.h"
#include "io/datasets/text_source.h"
#include "io/tokenizers/tokenizer.h"

namespace weft {

// Reads a .tokens file. Opening checks header, file size and document starts; InputError says what does not
// hold.
class TokenFile {
 public:
  explicit TokenFile(const std::string& path);

  int64_t size() const { return tokens_; }
  int64_t documents() const { return documents_; }
  int64_t vocab_size() const { return vocab_size_; }
  // Of the tokenizer that made it; "" if unknown.
  const std::string& fingerprint() const { return fingerprint_; }
  const std::string& path() const { return file_.path(); }

  // Ids [begin, begin + count) to `out`. InputError for an id that is not below vocab_size().
  void read(int64_t begin, int64_t count, int64_t* out) const;
  // Where document i (0-based) begins; start(documents()) is size().
  int64_t start(int64_t i) const;
  // The first document that begins at or after `position`, or documents().
  int64_t first_document_from(int64_t position) const;
  // CRC-32C of the whole file, computed at every call.
  uint32_t checksum() const;
  // InputError unless the file was made by this tokenizer.
  void require_tokenizer(const Tokenizer& tokenizer) const;

 private:
  MappedFile file_;
  int64_t tokens_ = 0, documents_ = 0, vocab_size_ = 0, token_bytes_ = 2;
  std::string fingerprint_;
  const uint64_t* starts_ = nullptr;
};

// Writes a .tokens file; memory is 8 bytes a document. The file appears at finish(), complete or not at all.
class TokenFileWriter {
 public:
  // u16 when vocab_size <= 65536, else u32.
  TokenFileWriter(const std::string& path, int64_t vocab_size, const std::string& fingerprint);
  // Adds one document; an empty one adds nothing. InputError for ids outside [0, vocab_size).
  void add(std::span<const int64_t> document);
  // InputError when there is no token at all.
  void finish();
  int64_t size() const { return tokens_; }

 private:
  AtomicFile file_;
  int64_t vocab_size_, token_bytes_, tokens_ = 0;
  std::string fingerprint_;
  std::vector<uint64_t> starts_;
};

struct TokenFileProgress {
  int64_t documents = 0, tokens = 0;
  uint64_t bytes_done = 0, bytes_total = 0;  // of the source
};

// Tokenizes every document, with the tokenizer's end-of-text id after each if it has one. Special tokens
// spelled out in the text are text. `progress` is called after each document.
TokenFileProgress build_token_file(TextSource& source, const Tokenizer& tokenizer, const std::string& path,
                                   const std::function<void(const TokenFileProgress&)>& progress = {});

}  // namespace weft
