#include "base/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include "base/text.h"

namespace weft {
namespace {

using Seconds = std::chrono::duration<double>;

}  // namespace

LineOutput LineOutput::to(std::FILE* file, bool quiet) {
  const Style style = quiet ? Style::quiet : ::isatty(::fileno(file)) ? Style::live : Style::plain;
  return LineOutput(
      [file](std::string_view text) {
        std::fwrite(text.data(), 1, text.size(), file);
        std::fflush(file);
      },
      style);
}

void LineOutput::line(std::string_view text) {
  if (style_ == Style::quiet) return;
  clear();
  write_(std::string(text) + "\n");
}

void LineOutput::update(std::string_view text) {
  if (style_ != Style::live) return;
  write_(fmt::format("\r{}\x1b[K", text.substr(0, text.find('\n'))));
  shown_ = true;
}

void LineOutput::clear() {
  if (!shown_) return;
  write_("\r\x1b[K");
  shown_ = false;
}

Progress::Progress(LineOutput& out, std::string label, double total, std::string unit)
    : out_(out),
      label_(std::move(label)),
      unit_(std::move(unit)),
      total_(total),
      begin_(std::chrono::steady_clock::now()),
      shown_(begin_) {}

std::string Progress::text(double seconds) const {
  const double rate = seconds > 0 ? done_ / seconds : 0;
  std::string line = label_;
  if (total_ > 0) line += fmt::format("  {:3.0f}%", 100 * done_ / total_);
  line += fmt::format("  {} {}  {} {}/s", count_text(done_), unit_, count_text(rate), unit_);
  if (total_ > done_ && rate > 0) line += fmt::format("  {} left", duration_text((total_ - done_) / rate));
  return line;
}

void Progress::at(double done) {
  done_ = done;
  const auto now = std::chrono::steady_clock::now();
  if (Seconds(now - shown_).count() < (out_.live() ? 0.1 : 10.0)) return;
  shown_ = now;
  const auto line = text(Seconds(now - begin_).count());
  out_.live() ? out_.update(line) : out_.line(line);
}

void Progress::finish(bool summary) {
  out_.clear();
  if (!summary) return;
  const double seconds = Seconds(std::chrono::steady_clock::now() - begin_).count();
  out_.line(fmt::format("{}: {} {} in {} ({} {}/s)", label_, count_text(done_), unit_, duration_text(seconds),
                        count_text(seconds > 0 ? done_ / seconds : 0), unit_));
}

int64_t resident_bytes() {
  std::FILE* file = std::fopen("/proc/self/statm", "r");
  if (!file) return 0;
  long long total = 0, resident = 0;
  const int fields = std::fscanf(file, "%lld %lld", &total, &resident);
  std::fclose(file);
  return fields == 2 ? resident * ::sysconf(_SC_PAGESIZE) : 0;
}

}  // namespace weft
