#include "io/datasets/token_file.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/crc32c.h"
#include "base/error.h"

namespace weft {

static_assert(std::endian::native == std::endian::little, "token files are read and written as memory");

namespace {

constexpr char kMagic[8] = {'W', 'E', 'F', 'T', 'T', 'O', 'K', '\n'};
constexpr uint32_t kVersion = 1;
constexpr uint64_t kMaxTokens = uint64_t{1} << 48;

struct Header {
  char magic[8];
  uint32_t version, token_bytes;
  uint64_t tokens, documents, vocab_size;
  char fingerprint[64];
  char reserved[24];
};
static_assert(sizeof(Header) == 128);

// The document starts follow the ids at the next multiple of 8.
uint64_t starts_offset(uint64_t tokens, uint64_t token_bytes) {
  return sizeof(Header) + (tokens * token_bytes + 7) / 8 * 8;
}

void check_header(const Header& header, const std::string& path) {
  require(std::memcmp(header.magic, kMagic, sizeof kMagic) == 0,
          "{}: is not a token file (wrong first bytes)", path);
  require(header.version == kVersion,
          "{}: has version {}, this program reads version {}; make the file again", path, header.version,
          kVersion);
  require(header.token_bytes == 2 || header.token_bytes == 4, "{}: has {} bytes an id, expected 2 or 4", path,
          header.token_bytes);
  require(header.tokens >= 1 && header.tokens <= kMaxTokens, "{}: states {} tokens, expected 1 to {}", path,
          header.tokens, kMaxTokens);
  require(header.documents >= 1 && header.documents <= header.tokens, "{}: states {} documents of {} tokens",
          path, header.documents, header.tokens);
  require(header.vocab_size >= 1 && header.vocab_size <= (uint64_t{1} << (8 * header.token_bytes)),
          "{}: states a vocabulary of {}, too many for ids of {} bytes", path, header.vocab_size,
          header.token_bytes);
}

template <class T>
void widen(const std::byte* from, int64_t count, int64_t* out) {
  for (int64_t i = 0; i < count; ++i) {
    T id;
    std::memcpy(&id, from + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
    out[i] = id;
  }
}

}  // namespace

TokenFile::TokenFile(const std::string& path) : file_(path) {
  require(file_.size() >= sizeof(Header), "{}: {} bytes are too few for a token file; is it truncated?", path,
          file_.size());
  Header header;
  std::memcpy(&header, file_.data(), sizeof header);
  check_header(header, path);
  const uint64_t starts = starts_offset(header.tokens, header.token_bytes),
                 size = starts + 8 * header.documents;
  require(size == file_.size(), "{}: {} tokens in {} documents make {} bytes, but the file has {}; is it {}?",
          path, header.tokens, header.documents, size, file_.size(),
          file_.size() < size ? "truncated" : "damaged");
  starts_ = reinterpret_cast<const uint64_t*>(file_.data() + starts);
  require(starts_[0] == 0, "{}: the first document begins at {}, expected 0", path, starts_[0]);
  for (uint64_t i = 1; i < header.documents; ++i)
    require(starts_[i] > starts_[i - 1] && starts_[i] < header.tokens,
            "{}: document {} begins at {}, after one at {} of {} tokens", path, i, starts_[i], starts_[i - 1],
            header.tokens);
  tokens_ = static_cast<int64_t>(header.tokens);
  documents_ = static_cast<int64_t>(header.documents);
  vocab_size_ = static_cast<int64_t>(header.vocab_size);
  token_bytes_ = header.token_bytes;
  fingerprint_.assign(header.fingerprint, ::strnlen(header.fingerprint, sizeof header.fingerprint));
}

void TokenFile::read(int64_t begin, int64_t count, int64_t* out) const {
  invariant(begin >= 0 && count >= 0 && begin <= tokens_ - count, "{}: tokens {} to {} of {}", path(), begin,
            begin + count, tokens_);
  const std::byte* from = file_.data() + sizeof(Header) + begin * token_bytes_;
  token_bytes_ == 2 ? widen<uint16_t>(from, count, out) : widen<uint32_t>(from, count, out);
  for (int64_t i = 0; i < count; ++i)
    require(out[i] < vocab_size_, "{}: token {} is {}, outside the vocabulary of {}; the file is damaged",
            path(), begin + i, out[i], vocab_size_);
}

int64_t TokenFile::start(int64_t i) const {
  invariant(i >= 0 && i <= documents_, "{}: document {} of {}", path(), i, documents_);
  return i == documents_ ? tokens_ : static_cast<int64_t>(starts_[i]);
}

int64_t TokenFile::first_document_from(int64_t position) const {
  return std::lower_bound(starts_, starts_ + documents_, static_cast<uint64_t>(position)) - starts_;
}

uint32_t TokenFile::checksum() const { return crc32c(file_.text()); }

void TokenFile::require_tokenizer(const Tokenizer& tokenizer) const {
  require(fingerprint_ == tokenizer.fingerprint(),
          "{}: was made with the tokenizer {}, but the one given is {}; make the file again with it", path(),
          fingerprint_.empty() ? "(unknown)" : fingerprint_, tokenizer.fingerprint());
}

TokenFileWriter::TokenFileWriter(const std::string& path, int64_t vocab_size, const std::string& fingerprint)
    : file_(path),
      vocab_size_(vocab_size),
      token_bytes_(vocab_size <= 65536 ? 2 : 4),
      fingerprint_(fingerprint) {
  require(vocab_size >= 1 && vocab_size <= (int64_t{1} << 32), "{}: a vocabulary of {} ids cannot be stored",
          path, vocab_size);
  invariant(fingerprint.size() <= sizeof Header::fingerprint, "the fingerprint '{}' is too long",
            fingerprint);
  const Header room{};
  file_.out().write(&room, sizeof room);
}

void TokenFileWriter::add(std::span<const int64_t> document) {
  if (document.empty()) return;
  for (const int64_t id : document)
    require(id >= 0 && id < vocab_size_, "{}: document {} has the id {}, outside the vocabulary of {}",
            file_.out().path(), starts_.size(), id, vocab_size_);
  starts_.push_back(static_cast<uint64_t>(tokens_));
  // Little-endian: the low bytes of an id are its first bytes.
  for (const int64_t id : document) file_.out().write(&id, static_cast<size_t>(token_bytes_));
  tokens_ += static_cast<int64_t>(document.size());
}

void TokenFileWriter::finish() {
  require(tokens_ > 0, "{}: there is no token to write; the text is empty", file_.out().path());
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.version = kVersion;
  header.token_bytes = static_cast<uint32_t>(token_bytes_);
  header.tokens = static_cast<uint64_t>(tokens_);
  header.documents = starts_.size();
  header.vocab_size = static_cast<uint64_t>(vocab_size_);
  std::memcpy(header.fingerprint, fingerprint_.data(), fingerprint_.size());
  const uint64_t padding = starts_offset(header.tokens, header.token_bytes) - file_.out().size();
  file_.out().write(std::string(padding, '\0'));
  file_.out().write(starts_.data(), 8 * starts_.size());
  file_.out().overwrite(0, &header, sizeof header);
  file_.commit();
}

TokenFileProgress build_token_file(TextSource& source, const Tokenizer& tokenizer, const std::string& path,
                                   const std::function<void(const TokenFileProgress&)>& progress) {
  TokenFileWriter writer(path, tokenizer.vocab_size(), tokenizer.fingerprint());
  TokenFileProgress done{.bytes_total = source.bytes_total()};
  std::string document;
  while (source.next(document)) {
    std::vector<int64_t> ids = tokenizer.encode(document, {.parse_special = false});
    if (const auto end = tokenizer.end_of_text()) ids.push_back(*end);
    writer.add(ids);
    ++done.documents;
    done.tokens = writer.size();
    done.bytes_done = source.bytes_done();
    if (progress) progress(done);
  }
  writer.finish();
  return done;
}

}  // namespace weft
