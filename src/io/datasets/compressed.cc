#include "io/datasets/compressed.h"

#include <zlib.h>

#include <filesystem>

#include "base/error.h"
#include "base/files.h"

namespace weft {
namespace {

struct Inflater {
  z_stream stream{};
  Inflater() { invariant(inflateInit2(&stream, 15 + 16) == Z_OK, "zlib does not start"); }
  ~Inflater() { inflateEnd(&stream); }
};

std::string inflate_all(std::string_view packed, const std::string& path, size_t limit) {
  std::string text;
  size_t used = 0;
  while (used < packed.size()) {  // a gzip file may hold several members
    Inflater inflater;
    auto& stream = inflater.stream;
    int status = Z_OK;
    while (status != Z_STREAM_END) {
      const size_t piece = std::min<size_t>(packed.size() - used, 1u << 30), room = 1u << 20,
                   before = text.size();
      text.resize(before + room);
      stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(packed.data() + used));
      stream.avail_in = static_cast<uInt>(piece);
      stream.next_out = reinterpret_cast<Bytef*>(text.data() + before);
      stream.avail_out = static_cast<uInt>(room);
      status = inflate(&stream, Z_NO_FLUSH);
      used += piece - stream.avail_in;
      text.resize(before + room - stream.avail_out);
      require(status == Z_OK || status == Z_STREAM_END || (status == Z_BUF_ERROR && used < packed.size()),
              "{}: the gzip data is {} at byte {}", path, status == Z_BUF_ERROR ? "cut short" : "damaged",
              used);
      require(text.size() <= limit, "{}: more than {} bytes when unpacked", path, limit);
    }
  }
  return text;
}

}  // namespace

std::string read_data_file(const std::string& path, const std::string& hint, size_t limit) {
  require(std::filesystem::exists(path), "{}: no such file{}{}", path, hint.empty() ? "" : "; ", hint);
  const MappedFile file(path);
  const auto text = file.text();
  if (text.size() >= 2 && text[0] == '\x1f' && text[1] == '\x8b') return inflate_all(text, path, limit);
  require(text.size() <= limit, "{}: more than {} bytes", path, limit);
  return std::string(text);
}

}  // namespace weft
