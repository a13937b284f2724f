#include "train/log/json_log.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/files.h"

namespace weft {
namespace {

LogLine parse_line(std::string_view text, const std::string& path, int64_t number) {
  const auto json = nlohmann::json::parse(text, nullptr, false);
  require(json.is_object() && json.contains("step") && json["step"].is_number_integer(),
          "{}:{}: expected a JSON object with a whole number \"step\"; was this file edited?", path, number);
  LogLine line{.step = json["step"].get<int64_t>(), .values = {}};
  for (const auto& [name, value] : json.items())
    if (name != "step" && value.is_number()) line.values.emplace_back(name, value.get<double>());
  return line;
}

// Calls take(line, begin, end) for every whole line, with the bytes it covers, until it returns false.
template <class Take>
void each_line(const std::string& text, const std::string& path, Take take) {
  size_t begin = 0;
  for (int64_t number = 1; begin < text.size(); ++number) {
    const size_t end = text.find('\n', begin);
    if (end == std::string::npos) return;
    if (!take(parse_line(std::string_view(text).substr(begin, end - begin), path, number), end + 1)) return;
    begin = end + 1;
  }
}

// Bytes of the file up to and with the last line that stays.
size_t kept_bytes(const std::string& path, int64_t last_step) {
  size_t kept = 0;
  each_line(read_text(path), path, [&](const LogLine& line, size_t end) {
    if (line.step > last_step) return false;
    kept = end;
    return true;
  });
  return kept;
}

std::string reason() { return std::strerror(errno); }

}  // namespace

double LogLine::value(const std::string& name, double otherwise) const {
  for (const auto& [key, number] : values)
    if (key == name) return number;
  return otherwise;
}

JsonLog::JsonLog(const std::string& path, int64_t last_step) : path_(path) {
  fd_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  require(fd_ >= 0, "{}: cannot open this log: {}", path, reason());
  struct stat info {};
  if (::fstat(fd_, &info) != 0 || !S_ISREG(info.st_mode)) return;
  require(::ftruncate(fd_, static_cast<off_t>(kept_bytes(path, last_step))) == 0,
          "{}: cannot shorten this log: {}", path, reason());
}

JsonLog::~JsonLog() {
  if (fd_ >= 0) ::close(fd_);
}

void JsonLog::append(const LogLine& line) {
  std::string text = fmt::format("{{\"step\":{}", line.step);
  for (const auto& [name, value] : line.values)
    if (std::isfinite(value)) text += fmt::format(",\"{}\":{}", name, value);
  text += "}\n";
  const auto before = ::lseek(fd_, 0, SEEK_END);
  const auto written = ::write(fd_, text.data(), text.size());
  if (written == static_cast<ssize_t>(text.size())) return;
  const std::string why = written < 0 ? reason() : "the disk is full";
  if (written > 0 && ::ftruncate(fd_, before) != 0) ::lseek(fd_, 0, SEEK_END);
  throw InputError(
      fmt::format("{}: cannot write the log: {}; free some space, then go on with --resume", path_, why));
}

void JsonLog::sync() { ::fsync(fd_); }

std::vector<LogLine> read_json_log(const std::string& path) {
  std::vector<LogLine> lines;
  each_line(read_text(path), path, [&](LogLine line, size_t) {
    lines.push_back(std::move(line));
    return true;
  });
  return lines;
}

}  // namespace weft
