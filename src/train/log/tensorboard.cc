#include "train/log/tensorboard.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "base/crc32c.h"
#include "base/error.h"

namespace weft {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

template <class T>
std::string little_endian(T value) {
  static_assert(std::endian::native == std::endian::little);
  return {reinterpret_cast<const char*>(&value), sizeof(value)};
}

// The four pieces of protobuf's wire format that an Event needs; `field` is the number in event.proto.
std::string varint(uint64_t value) {
  std::string text;
  for (; value >= 0x80; value >>= 7) text += static_cast<char>(value | 0x80);
  return text + static_cast<char>(value);
}
std::string integer(int field, int64_t value) {
  return varint(static_cast<uint64_t>(field) << 3) + varint(static_cast<uint64_t>(value));
}
std::string bytes(int field, std::string_view value) {
  return varint(static_cast<uint64_t>(field) << 3 | 2) + varint(value.size()) + std::string(value);
}
std::string real(int field, double value) {
  return varint(static_cast<uint64_t>(field) << 3 | 1) + little_endian(value);
}
std::string single(int field, float value) {
  return varint(static_cast<uint64_t>(field) << 3 | 5) + little_endian(value);
}

// Event { double wall_time = 1; int64 step = 2; string file_version = 3; Summary summary = 5;
//         SessionLog session_log = 7; }
std::string event(int64_t step, const std::string& what) { return real(1, now()) + integer(2, step) + what; }

}  // namespace

EventFile::EventFile(const std::string& folder, int64_t first_step) {
  std::array<char, 64> host{};
  ::gethostname(host.data(), host.size() - 1);
  path_ = fmt::format("{}/events.out.tfevents.{:.0f}.{}.{}", folder, now(), host.data(), ::getpid());
  fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  require(fd_ >= 0, "{}: cannot create this file: {}", path_, std::strerror(errno));
  write_record(event(0, bytes(3, "brain.Event:2")));
  constexpr int64_t kStart = 1;  // SessionLog.SessionStatus
  if (first_step > 0) write_record(event(first_step, bytes(7, integer(1, kStart))));
}

EventFile::~EventFile() {
  if (fd_ >= 0) ::close(fd_);
}

void EventFile::scalar(const std::string& tag, int64_t step, double value) {
  const auto summary_value = bytes(1, tag) + single(2, static_cast<float>(value));
  write_record(event(step, bytes(5, bytes(1, summary_value))));
}

void EventFile::write_record(std::string_view text) {
  const auto length = little_endian(static_cast<uint64_t>(text.size()));
  const auto record =
      length + little_endian(masked_crc32c(length)) + std::string(text) + little_endian(masked_crc32c(text));
  const auto written = ::write(fd_, record.data(), record.size());
  require(written == static_cast<ssize_t>(record.size()),
          "{}: cannot write: {}; free some space, then go on with --resume", path_,
          written < 0 ? std::strerror(errno) : "the disk is full");
}

}  // namespace weft
