#include "infer/text_pieces.h"

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "base/error.h"

namespace weft {
namespace {

constexpr size_t kPiece = 64 << 10;

bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool continues_character(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

// Where to end a piece of `text`, which is longer than kPiece.
size_t cut(const std::string& text) {
  for (size_t at = kPiece; at > kPiece / 2; --at)
    if (text[at] == ' ' && is_letter(text[at - 1]) && is_letter(text[at + 1])) return at;
  for (size_t at = kPiece; at > kPiece - 4; --at)
    if (!continues_character(text[at])) return at;
  return kPiece;
}

}  // namespace

TextPieces::TextPieces(const std::string& path, std::string separator)
    : path_(path), separator_(std::move(separator)), file_(path, std::ios::binary) {
  const int reason = errno;
  require(!std::filesystem::is_directory(path), "{}: is a folder, expected a text file", path);
  require(file_.is_open(), "{}: cannot be read: {}", path, std::strerror(reason));
  std::error_code failed;
  const auto size = std::filesystem::file_size(path, failed);
  total_ = failed ? 0 : static_cast<int64_t>(size);
}

void TextPieces::fill() {
  const size_t wanted = kPiece + separator_.size() + 2;
  if (buffer_.size() >= wanted || !file_) return;
  const size_t had = buffer_.size();
  buffer_.resize(wanted + kPiece);
  file_.read(buffer_.data() + had, static_cast<std::streamsize>(buffer_.size() - had));
  require(!file_.bad(), "{}: reading failed after {} bytes", path_, done_ + static_cast<int64_t>(had));
  buffer_.resize(had + static_cast<size_t>(file_.gcount()));
}

void TextPieces::take(size_t bytes) {
  buffer_.erase(0, bytes);
  done_ += static_cast<int64_t>(bytes);
}

bool TextPieces::next(TextPiece& piece) {
  while (true) {
    fill();
    if (buffer_.empty()) return false;
    const size_t separator = separator_.empty() ? std::string::npos : buffer_.find(separator_);
    const size_t rest = std::min(separator, buffer_.size());
    const size_t length = rest <= kPiece ? rest : cut(buffer_);
    piece = {buffer_.substr(0, length), at_start_};
    take(length);
    if (length > 0) at_start_ = false;
    if (length == separator) {
      const bool newline = buffer_.size() > separator_.size() && buffer_[separator_.size()] == '\n';
      take(separator_.size() + (newline ? 1 : 0));
      at_start_ = true;
    }
    if (length > 0) return true;
  }
}

}  // namespace weft
