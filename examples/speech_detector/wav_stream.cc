#include "wav_stream.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"

namespace {

uint32_t number32(const unsigned char* at) {
  return at[0] | at[1] << 8 | at[2] << 16 | static_cast<uint32_t>(at[3]) << 24;
}
uint32_t number16(const unsigned char* at) { return at[0] | at[1] << 8; }

}  // namespace

WavStream::WavStream(const std::string& path, uint32_t rate)
    : path_(path), file_(path == "-" ? stdin : std::fopen(path.c_str(), "rb")) {
  weft::require(file_ != nullptr, "{}: cannot be opened", path);
  unsigned char head[12];
  need(head, sizeof head, "its header");
  weft::require(!std::memcmp(head, "RIFF", 4) && !std::memcmp(head + 8, "WAVE", 4), "{}: not a WAV file",
                path);
  bool described = false;
  for (;;) {
    unsigned char chunk[8];
    need(chunk, sizeof chunk, "its data chunk");
    const std::string name(reinterpret_cast<const char*>(chunk), 4);
    const uint32_t bytes = number32(chunk + 4);
    if (name == "data") {
      weft::require(described, "{}: the data comes before its description (the chunk 'fmt ')", path);
      left_ = bytes / 2;
      return;
    }
    weft::require(bytes <= 1 << 20, "{}: a chunk '{}' of {} bytes before the data", path, name, bytes);
    std::vector<unsigned char> content(bytes + bytes % 2);
    need(content.data(), content.size(), "a chunk of its header");
    if (name != "fmt ") continue;
    weft::require(bytes >= 16, "{}: its description has {} bytes, expected 16", path, bytes);
    const auto format = number16(content.data()), channels = number16(content.data() + 2);
    const auto found = number32(content.data() + 4), bits = number16(content.data() + 14);
    weft::require(
        format == 1 && bits == 16 && channels == 1 && found == rate,
        "{}: format {}, {} bits, {} channels, {} Hz; expected PCM (format 1), 16 bits, 1 channel, {} Hz",
        path, format, bits, channels, found, rate);
    described = true;
  }
}

WavStream::~WavStream() {
  if (file_ != stdin) std::fclose(file_);
}

void WavStream::need(void* data, size_t bytes, const char* what) {
  weft::require(std::fread(data, 1, bytes, file_) == bytes, "{}: ends inside {}", path_, what);
}

size_t WavStream::read(std::vector<float>& block) {
  std::vector<unsigned char> bytes(2 * std::min<uint64_t>(block.size(), left_));
  const size_t got = std::fread(bytes.data(), 2, bytes.size() / 2, file_);
  left_ = got < bytes.size() / 2 ? 0 : left_ - got;
  for (size_t i = 0; i < block.size(); ++i)
    block[i] = i < got ? static_cast<float>(static_cast<int16_t>(number16(&bytes[2 * i]))) / 32768.0f : 0.0f;
  return got;
}
