// Documents of text, one after another, from plain text files and JSON lines.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace weft {

// A one-pass reader of documents.
class TextSource {
 public:
  virtual ~TextSource() = default;
  // The next document; false when there is none.
  virtual bool next(std::string& document) = 0;
  // For progress: bytes of input passed and in all.
  virtual uint64_t bytes_done() const = 0;
  virtual uint64_t bytes_total() const = 0;
};

struct TextOptions {
  std::string separator = "";  // text files: cuts documents, "" makes the whole file one; "\f" for form feeds
  std::string field = "text";  // JSON lines: the member that holds the text
};

// `path` ending in .jsonl or .ndjson is JSON lines, anything else plain text (all of it, byte for byte; one
// newline right after a separator belongs to the separator; empty documents are left out). InputError
// "file:line: reason" for lines that are not an object with a text under `field`.
std::unique_ptr<TextSource> open_text(const std::string& path, const TextOptions& options = {});
// Several files one after another.
std::unique_ptr<TextSource> open_texts(const std::vector<std::string>& paths,
                                       const TextOptions& options = {});

}  // namespace weft
