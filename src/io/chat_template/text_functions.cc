#include "io/chat_template/text_functions.h"

#include <algorithm>
#include <cstring>

#include "io/chat_template/operators.h"

namespace weft::jinja {
namespace {

constexpr size_t kShort = 32;  // of texts that are searched for place by place

// Where the last character of the text begins.
size_t last_point(std::string_view text) {
  size_t at = text.size() - 1;
  while (at > 0 && text.size() - at < 4 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  size_t end = at;
  next_point(text, end);
  return end == text.size() ? at : text.size() - 1;
}

std::vector<std::string_view> split_blanks(std::string_view text, int64_t most) {
  std::vector<std::string_view> parts;
  size_t at = 0;
  while (true) {
    text = strip(text, nullptr, true, false);
    if (text.empty()) return parts;
    if (most >= 0 && static_cast<int64_t>(parts.size()) >= most) break;
    spend(1);
    for (at = 0; at < text.size();) {
      size_t ahead = at;
      if (is_space(next_point(text, ahead))) break;
      at = ahead;
    }
    parts.push_back(text.substr(0, at));
    text.remove_prefix(at);
  }
  parts.push_back(text);
  return parts;
}

std::vector<std::string_view> split_blanks_from_right(std::string_view text, int64_t most) {
  std::vector<std::string_view> parts;
  while (true) {
    text = strip(text, nullptr, false, true);
    if (text.empty()) break;
    spend(1);
    size_t begin = text.size();
    if (most >= 0 && static_cast<int64_t>(parts.size()) >= most) begin = 0;
    while (begin > 0) {
      const size_t point = last_point(text.substr(0, begin));
      size_t end = point;
      if (is_space(next_point(text, end))) break;
      begin = point;
    }
    parts.push_back(text.substr(begin));
    text = text.substr(0, begin);
  }
  std::reverse(parts.begin(), parts.end());
  return parts;
}

}  // namespace

std::string_view strip(std::string_view text, const std::string* chars, bool left, bool right) {
  const auto goes = [&](std::string_view character) {
    if (chars) {
      spend(chars->size() / 16 + 1);
      for (size_t at = 0; at < chars->size();) {
        const size_t begin = at;
        next_point(*chars, at);
        if (std::string_view(*chars).substr(begin, at - begin) == character) return true;
      }
      return false;
    }
    size_t at = 0;
    return is_space(next_point(character, at));
  };
  while (left && !text.empty()) {
    size_t end = 0;
    next_point(text, end);
    if (!goes(text.substr(0, end))) break;
    text.remove_prefix(end);
  }
  while (right && !text.empty()) {
    const size_t begin = last_point(text);
    if (!goes(text.substr(begin))) break;
    text = text.substr(0, begin);
  }
  return text;
}

std::vector<std::string_view> split(std::string_view text, const std::string* separator, int64_t most,
                                    bool from_right) {
  if (auto* budget = Budget::current()) budget->step(static_cast<int64_t>(text.size()) / 16);
  if (!separator) return from_right ? split_blanks_from_right(text, most) : split_blanks(text, most);
  if (separator->empty()) fail("empty separator");
  std::vector<std::string_view> parts;
  while (most < 0 || static_cast<int64_t>(parts.size()) < most) {
    const size_t at = from_right ? find_last_text(text, *separator) : find_text(text, *separator);
    if (at == std::string_view::npos) break;
    spend(from_right && separator->size() > kShort ? 1 + text.size() / 16 : 1);
    const auto before = text.substr(0, at), after = text.substr(at + separator->size());
    parts.push_back(from_right ? after : before);
    text = from_right ? before : after;
  }
  parts.push_back(text);
  if (from_right) std::reverse(parts.begin(), parts.end());
  return parts;
}

// memmem is linear; std::string::find compares the whole text that is wanted at each place.
size_t find_text(std::string_view text, std::string_view wanted) {
  if (wanted.empty()) return 0;
  const void* found = ::memmem(text.data(), text.size(), wanted.data(), wanted.size());
  return found ? static_cast<size_t>(static_cast<const char*>(found) - text.data()) : std::string_view::npos;
}

size_t find_last_text(std::string_view text, std::string_view wanted) {
  if (wanted.size() <= kShort) return text.rfind(wanted);
  const std::string turned(text.rbegin(), text.rend()), wanted_turned(wanted.rbegin(), wanted.rend());
  const size_t at = find_text(turned, wanted_turned);
  return at == std::string_view::npos ? at : text.size() - at - wanted.size();
}

std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends) {
  std::vector<std::string_view> lines;
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = at;
    const auto point = next_point(text, at);
    if (!is_line_break(point)) continue;
    spend(1);
    if (point == '\r' && at < text.size() && text[at] == '\n') ++at;
    lines.push_back(text.substr(begin, (keep_ends ? at : end) - begin));
    begin = at;
  }
  if (begin < text.size()) lines.push_back(text.substr(begin));
  return lines;
}

std::string replace(std::string_view text, std::string_view from, std::string_view to, int64_t count) {
  std::string out;
  const auto add = [&](std::string_view part) {
    if (out.size() + part.size() > out.capacity())
      expect_bytes(static_cast<int64_t>(out.size() + part.size()));
    out += part;
  };
  if (from.empty()) {  // between all characters
    for (size_t at = 0; count != 0; --count) {
      spend(1);
      add(to);
      if (at >= text.size()) return out;
      const size_t begin = at;
      next_point(text, at);
      add(text.substr(begin, at - begin));
      if (count == 1) {
        add(text.substr(at));
        return out;
      }
    }
    return std::string(text);
  }
  for (size_t at; count != 0 && (at = find_text(text, from)) != std::string_view::npos; --count) {
    spend(1);
    add(text.substr(0, at));
    add(to);
    text.remove_prefix(at + from.size());
  }
  add(text);
  return out;
}

std::string center(const std::string& text, int64_t width, std::string_view fill) {
  const int64_t room = width - static_cast<int64_t>(count_points(text));
  if (room <= 0) return text;
  const int64_t left = room / 2 + (room & width & 1);  // as Python rounds
  return repeated(fill, left) + text + repeated(fill, room - left);
}

std::string expand_tabs(std::string_view text, int64_t size) {
  std::string out;
  int64_t column = 0;
  for (const auto character : points_of(text)) {
    if (character == "\t") {
      const int64_t room = size > 0 ? size - column % size : 0;
      expect_bytes(static_cast<int64_t>(out.size()) + std::max<int64_t>(room, 0));
      out += repeated(" ", room);
      column += room;
    } else {
      out += character;
      column = character == "\n" || character == "\r" ? 0 : column + 1;
    }
  }
  return out;
}

bool is_case(std::string_view text, CharClass kind) {
  bool any = false;
  for (size_t at = 0; at < text.size();) {
    const auto point = next_point(text, at);
    if (is_class(point, kind))
      any = true;
    else if (is_class(point, CharClass::upper) || is_class(point, CharClass::lower))
      return false;
  }
  return any;
}

bool is_title(std::string_view text) {
  bool any = false, inside = false;
  for (size_t at = 0; at < text.size();) {
    const auto point = next_point(text, at);
    const bool big = is_class(point, CharClass::upper), small = is_class(point, CharClass::lower);
    if ((big && inside) || (small && !inside)) return false;
    inside = big || small;
    any |= inside;
  }
  return any;
}

}  // namespace weft::jinja
