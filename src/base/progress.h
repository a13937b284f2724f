// What long work shows: one live line on a terminal, plain lines elsewhere. Library code is handed a
// LineOutput and never opens a stream of its own.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>
#include <string_view>

namespace weft {

// Lines that stay, and one line at the bottom that is replaced in place.
class LineOutput {
 public:
  enum class Style {
    live,   // a terminal: the bottom line is redrawn with a carriage return
    plain,  // a file or pipe: only lines that stay
    quiet,  // nothing
  };
  using Write = std::function<void(std::string_view)>;

  // Shows nothing.
  LineOutput() = default;
  LineOutput(Write write, Style style) : write_(std::move(write)), style_(style) {}
  // Writes to `file` and flushes after each line; live when it is a terminal. `file` must outlive this
  // object.
  static LineOutput to(std::FILE* file, bool quiet = false);

  Style style() const { return style_; }
  bool live() const { return style_ == Style::live; }
  // A line (or several, separated by newlines) that stays.
  void line(std::string_view text);
  // Replaces the live line; nothing in the other styles. Text is cut at the first newline, not to the width.
  void update(std::string_view text);
  // Removes the live line.
  void clear();

 private:
  Write write_;
  Style style_ = Style::quiet;
  bool shown_ = false;
};

// Work of a known or unknown amount: label, share done, rate, time left. Redraws at most ten times a second
// on a terminal; elsewhere gives a plain line every ten seconds, so that short work stays silent.
class Progress {
 public:
  // `total` in `unit`s ("tokens", "bytes"); 0 when unknown. `out` must outlive this object.
  Progress(LineOutput& out, std::string label, double total, std::string unit);
  // `done` units are finished.
  void at(double done);
  // Removes the live line; with `summary` leaves "label: N units in 0:12 (rate)".
  void finish(bool summary = false);

 private:
  std::string text(double seconds) const;
  LineOutput& out_;
  std::string label_, unit_;
  double total_, done_ = 0;
  std::chrono::steady_clock::time_point begin_, shown_;
};

// Memory of this process that is in RAM, in bytes; 0 where the system does not say.
int64_t resident_bytes();

}  // namespace weft
