// From Oniguruma's dialect to PCRE2's.
#include <cctype>

#include "base/error.h"
#include "io/tokenizers/regex.h"

namespace weft {

namespace {

// What \w means to Oniguruma; PCRE2's own \w lacks the marks.
constexpr std::string_view kWord = R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc})";

class Translator {
 public:
  Translator(std::string_view pattern, const std::string& where) : in_(pattern), where_(where) {}

  std::string run() {
    while (at_ < in_.size()) step();
    require(!in_class_, "{}: the regular expression has a '[' without ']'", where_);
    return std::move(out_);
  }

 private:
  void step() {
    const char c = in_[at_];
    if (c == '\\')
      escape();
    else if (in_class_)
      class_character(c);
    else if (c == '[')
      open_class();
    else if (c == '(')
      open_group();
    else if (c == '{')
      repeat();
    else
      copy(1);
  }

  void copy(size_t count) {
    out_ += in_.substr(at_, count);
    at_ += count;
  }

  void emit(std::string_view text, size_t consumed) {
    out_ += text;
    at_ += consumed;
  }

  [[noreturn]] void refuse(std::string_view what) const {
    throw Unsupported(
        fmt::format("{}: the regular expression has {} at byte {}, which weft cannot take over exactly: {}",
                    where_, what, at_, in_));
  }

  void escape() {
    require(at_ + 1 < in_.size(), "{}: the regular expression ends in a backslash", where_);
    const char c = in_[at_ + 1];
    switch (c) {
      case 's':
        return emit(R"(\p{White_Space})", 2);
      case 'S':
        return emit(R"(\P{White_Space})", 2);
      case 'v':
        return emit(R"(\x0B)", 2);
      case 'h':
        return emit(in_class_ ? "0-9a-fA-F" : "[0-9a-fA-F]", 2);
      case 'w':
        return emit(in_class_ ? std::string(kWord) : fmt::format("[{}]", kWord), 2);
      case 'W':
        if (in_class_) refuse("\\W inside [ ]");
        return emit(fmt::format("[^{}]", kWord), 2);
      case 'p':
      case 'P':
        return property();
      case 'u':
        return code_point();
      case 'd':
      case 'D':
      case 'r':
      case 'n':
      case 't':
      case 'f':
      case 'a':
      case 'e':
      case 'x':
        return copy(2);
      case 'A':
      case 'z':
        if (in_class_) refuse(fmt::format("\\{} inside [ ]", c));
        return copy(2);
      default:
        if (std::isalnum(static_cast<unsigned char>(c))) refuse(fmt::format("\\{}", c));
        return copy(2);
    }
  }

  // Names longer than a general category are scripts, which PCRE2 would widen to script extensions.
  void property() {
    const size_t close = in_.find('}', at_);
    if (at_ + 2 >= in_.size() || in_[at_ + 2] != '{' || close == std::string_view::npos)
      refuse("\\p without {name}");
    std::string_view name = in_.substr(at_ + 3, close - at_ - 3);
    const bool negated = name.starts_with('^');
    if (negated) name.remove_prefix(1);
    const bool plain = name.size() <= 2 || name == "Any" || name == "Alphabetic" || name == "White_Space" ||
                       name == "Uppercase" || name == "Lowercase" || name == "Emoji" || name == "Ideographic";
    emit(fmt::format("\\{}{{{}{}{}}}", in_[at_ + 1], negated ? "^" : "", plain ? "" : "sc:", name),
         close + 1 - at_);
  }

  void code_point() {
    const std::string_view digits = in_.substr(at_ + 2, 4);
    require(
        digits.size() == 4 && digits.find_first_not_of("0123456789abcdefABCDEF") == std::string_view::npos,
        "{}: the regular expression has \\u without four hexadecimal digits at byte {}", where_, at_);
    emit(fmt::format("\\x{{{}}}", digits), 6);
  }

  void open_class() {
    const bool negated = at_ + 1 < in_.size() && in_[at_ + 1] == '^';
    copy(negated ? 2 : 1);
    in_class_ = true;
    if (at_ < in_.size() && in_[at_] == ']') refuse("']' as the first member of [ ]");
  }

  void class_character(char c) {
    if (c == '[') refuse("'[' inside [ ]");
    if (in_.substr(at_, 2) == "&&") refuse("'&&' inside [ ]");
    if (c == ']') in_class_ = false;
    copy(1);
  }

  void open_group() {
    if (in_.substr(at_, 2) != "(?") return copy(1);
    const std::string_view rest = in_.substr(at_);
    for (const std::string_view known : {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:"})
      if (rest.starts_with(known)) return copy(known.size());
    if (at_ == 0 && rest.starts_with("(?i)")) return copy(4);
    refuse(rest.substr(0, 4));
  }

  void repeat() {
    const size_t close = in_.find('}', at_);
    const std::string_view inner =
        close == std::string_view::npos ? "" : in_.substr(at_ + 1, close - at_ - 1);
    const bool counts = !inner.empty() && inner.find_first_not_of("0123456789,") == std::string_view::npos;
    if (!counts) return emit("\\{", 1);
    if (close + 1 < in_.size() && in_[close + 1] == '+') refuse("'+' after { }");
    emit(fmt::format("{{{}{}}}", inner.starts_with(',') ? "0" : "", inner), close + 1 - at_);
  }

  std::string_view in_;
  const std::string& where_;
  std::string out_;
  size_t at_ = 0;
  bool in_class_ = false;
};

}  // namespace

std::string translate_pattern(std::string_view pattern, const std::string& where) {
  return Translator(pattern, where).run();
}

}  // namespace weft
