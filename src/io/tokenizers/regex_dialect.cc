// From the dialects of Oniguruma and Rust to PCRE2's.
#include <cctype>
#include <vector>

#include "base/error.h"
#include "io/tokenizers/regex.h"

namespace weft {

namespace {

// What \w means to Oniguruma and to Rust; PCRE2's own \w lacks the marks.
constexpr std::string_view kWordOniguruma = R"(\p{Alphabetic}\p{M}\p{N}\p{Pc})";
constexpr std::string_view kWordRust = R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\x{200C}\x{200D})";
constexpr int kDeepest = 32;  // groups in groups, classes in classes

// A set of characters as it is read: what fits into one [ ] and what needs an alternative of its own.
struct CharacterSet {
  std::string simple;
  std::vector<std::string> others;

  std::string expression() const {
    if (others.empty()) return "[" + simple + "]";
    std::string all = simple.empty() ? "" : "[" + simple + "]";
    for (const std::string& other : others) all += (all.empty() ? "" : "|") + other;
    return "(?:" + all + ")";
  }
};

class Translator {
 public:
  Translator(std::string_view pattern, const std::string& where, RegexDialect dialect)
      : in_(pattern),
        where_(where),
        rust_(dialect == RegexDialect::rust),
        word_(rust_ ? kWordRust : kWordOniguruma) {}

  std::string run() {
    while (at_ < in_.size()) step();
    return std::move(out_);
  }

 private:
  char peek(size_t ahead = 0) const { return at_ + ahead < in_.size() ? in_[at_ + ahead] : '\0'; }

  void step() {
    switch (peek()) {
      case '\\':
        atom_ = out_.size();
        out_ += escape();
        return;
      case '[':
        atom_ = out_.size();
        out_ += character_class(0);
        return;
      case '(':
        return open_group();
      case ')':
        if (!groups_.empty()) {
          atom_ = groups_.back();
          groups_.pop_back();
        }
        return copy(1);
      case '{':
        return repeat();
      case '*':
      case '+':
      case '?':
        return copy(1);
      default:
        if ((static_cast<unsigned char>(peek()) & 0xC0) != 0x80) atom_ = out_.size();
        return copy(1);
    }
  }

  void copy(size_t count) {
    out_ += in_.substr(at_, count);
    at_ += count;
  }

  std::string take(size_t count) {
    std::string taken(in_.substr(at_, count));
    at_ += taken.size();
    return taken;
  }

  std::string instead(std::string text, size_t count) {
    at_ += count;
    return text;
  }

  [[noreturn]] void refuse(std::string_view what) const {
    throw Unsupported(
        fmt::format("{}: the regular expression has {} at byte {}, which weft cannot take over exactly: {}",
                    where_, what, at_, in_));
  }

  // An escape outside of a class, as an expression.
  std::string escape() {
    require(at_ + 1 < in_.size(), "{}: the regular expression ends in a backslash", where_);
    const char c = peek(1);
    switch (c) {
      case 'w':
        return instead(fmt::format("[{}]", word_), 2);
      case 'W':
        return instead(fmt::format("[^{}]", word_), 2);
      case 'h':
        return instead("[0-9a-fA-F]", 2);
      case 'H':
        return instead("[^0-9a-fA-F]", 2);
      case 'b':
        return instead(fmt::format("(?:(?<=[{0}])(?![{0}])|(?<![{0}])(?=[{0}]))", word_), 2);
      case 'B':
        return instead(fmt::format("(?:(?<=[{0}])(?=[{0}])|(?<![{0}])(?![{0}]))", word_), 2);
      case 'R':
        return instead(R"((?:\r\n|[\n\x0B\f\r\x{85}\x{2028}\x{2029}]))", 2);
      case 'A':
      case 'z':
      case 'Z':
      case 'G':
      case 'X':
      case 'k':
        return take(2);
      default:
        if (c >= '1' && c <= '9') return take(2);
        return simple_escape();
    }
  }

  // An escape for characters that means the same inside and outside of a class.
  std::string simple_escape() {
    require(at_ + 1 < in_.size(), "{}: the regular expression ends in a backslash", where_);
    const char c = peek(1);
    switch (c) {
      case 's':
        return instead(R"(\p{White_Space})", 2);
      case 'S':
        return instead(R"(\P{White_Space})", 2);
      case 'v':
        return instead(R"(\x0B)", 2);
      case 'p':
      case 'P':
        return property();
      case 'u':
        return code_point();
      case '0':
        return instead(R"(\x00)", 2);
      case 'd':
      case 'D':
      case 'r':
      case 'n':
      case 't':
      case 'f':
      case 'a':
      case 'e':
      case 'x':
        return take(2);
      default:
        if (std::isalnum(static_cast<unsigned char>(c))) refuse(fmt::format("\\{}", c));
        if (static_cast<unsigned char>(c) >= 0x80) return instead("", 1);  // the character as it is
        return take(2);
    }
  }

  // Names longer than a general category are scripts, which PCRE2 would widen to script extensions.
  std::string property() {
    const bool braces = peek(2) == '{';
    if (!braces && !(rust_ && std::isupper(static_cast<unsigned char>(peek(2)))))
      refuse("\\p without {name}");
    const size_t close = braces ? in_.find('}', at_) : at_ + 2;
    if (close == std::string_view::npos) refuse("\\p without {name}");
    std::string_view name = braces ? in_.substr(at_ + 3, close - at_ - 3) : in_.substr(at_ + 2, 1);
    const bool negated = name.starts_with('^');
    if (negated) name.remove_prefix(1);
    for (const std::string_view key : {"Script=", "sc=", "script="})
      if (name.starts_with(key)) name.remove_prefix(key.size());
    static constexpr std::string_view long_names[][2] = {{"Alpha", "Alphabetic"},
                                                         {"Letter", "L"},
                                                         {"Mark", "M"},
                                                         {"Number", "N"},
                                                         {"Punctuation", "P"},
                                                         {"Punct", "P"},
                                                         {"Symbol", "S"},
                                                         {"Separator", "Z"},
                                                         {"Other", "C"},
                                                         {"Uppercase_Letter", "Lu"},
                                                         {"Lowercase_Letter", "Ll"},
                                                         {"Upper", "Uppercase"},
                                                         {"Lower", "Lowercase"},
                                                         {"Space", "White_Space"},
                                                         {"Decimal_Number", "Nd"},
                                                         {"Digit", "Nd"}};
    for (const auto& [given, known] : long_names)
      if (name == given) name = known;
    const bool plain = name.size() <= 2 || name == "Any" || name == "Alphabetic" || name == "White_Space" ||
                       name == "Uppercase" || name == "Lowercase" || name == "Emoji" ||
                       name == "Ideographic" || name == "Extended_Pictographic";
    std::string result = fmt::format("\\{}{{{}{}{}}}", peek(1), negated ? "^" : "", plain ? "" : "sc:", name);
    return instead(std::move(result), close + 1 - at_);
  }

  std::string code_point() {
    const std::string_view digits = in_.substr(at_ + 2, 4);
    require(
        digits.size() == 4 && digits.find_first_not_of("0123456789abcdefABCDEF") == std::string_view::npos,
        "{}: the regular expression has \\u without four hexadecimal digits at byte {}", where_, at_);
    return instead(fmt::format("\\x{{{}}}", digits), 6);
  }

  // [...] with classes inside and && as an expression for one character.
  std::string character_class(int depth) {
    require(depth < kDeepest, "{}: the regular expression has classes nested too deeply", where_);
    ++at_;
    const bool negated = peek() == '^';
    if (negated) ++at_;
    std::vector<CharacterSet> parts(1);
    if (peek() == ']') parts[0].simple += instead("\\]", 1);
    while (peek() != ']') {
      require(at_ < in_.size(), "{}: the regular expression has a '[' without ']'", where_);
      if (in_.substr(at_, 2) == "&&") {
        at_ += 2;
        parts.emplace_back();
      } else {
        class_member(parts.back(), depth);
      }
    }
    ++at_;
    return combined(parts, negated);
  }

  std::string combined(const std::vector<CharacterSet>& parts, bool negated) const {
    for (const CharacterSet& part : parts)
      require(!part.simple.empty() || !part.others.empty(), "{}: the regular expression has an empty class",
              where_);
    if (parts.size() == 1 && parts[0].others.empty())
      return fmt::format("[{}{}]", negated ? "^" : "", parts[0].simple);
    std::string all;
    for (size_t i = 0; i + 1 < parts.size(); ++i) all += fmt::format("(?={})", parts[i].expression());
    all += parts.back().expression();
    return negated ? fmt::format("(?:(?!{})(?s:.))", all) : fmt::format("(?:{})", all);
  }

  void class_member(CharacterSet& set, int depth) {
    const char c = peek();
    if (c == '[') {
      if (peek(1) == ':' && posix_class(set)) return;
      set.others.push_back(character_class(depth + 1));
    } else if (c == '\\') {
      class_escape(set);
    } else if (c == '^') {
      set.simple += instead("\\^", 1);
    } else {
      set.simple += take(1);
    }
  }

  void class_escape(CharacterSet& set) {
    switch (peek(1)) {
      case 'w':
        set.simple += instead(std::string(word_), 2);
        return;
      case 'W':
        set.others.push_back(instead(fmt::format("[^{}]", word_), 2));
        return;
      case 'h':
        set.simple += instead("0-9a-fA-F", 2);
        return;
      case 'H':
        set.others.push_back(instead("[^0-9a-fA-F]", 2));
        return;
      case 'b':
        set.simple += instead(R"(\x08)", 2);
        return;
      default:
        set.simple += simple_escape();
    }
  }

  // [:name:], with what Oniguruma and Rust mean by it.
  bool posix_class(CharacterSet& set) {
    const size_t end = in_.find(":]", at_);
    if (end == std::string_view::npos) return false;
    std::string_view name = in_.substr(at_ + 2, end - at_ - 2);
    const bool negated = name.starts_with('^');
    if (negated) name.remove_prefix(1);
    static constexpr std::string_view names[][3] = {{"alpha", R"(\p{Alphabetic})", "a-zA-Z"},
                                                    {"alnum", R"(\p{Alphabetic}\p{Nd})", "a-zA-Z0-9"},
                                                    {"digit", R"(\p{Nd})", "0-9"},
                                                    {"upper", R"(\p{Uppercase})", "A-Z"},
                                                    {"lower", R"(\p{Lowercase})", "a-z"},
                                                    {"space", R"(\p{White_Space})", R"(\t\n\x0B\f\r )"},
                                                    {"punct", R"(\p{P}$+<=>\^`|~)", R"(!-/:-@\[-`{-~)"},
                                                    {"blank", R"(\p{Zs}\t)", R"(\t )"},
                                                    {"cntrl", R"(\p{Cc})", R"(\x00-\x1F\x7F)"},
                                                    {"xdigit", "0-9a-fA-F", "0-9a-fA-F"},
                                                    {"word", kWordOniguruma, "0-9A-Za-z_"}};
    for (const auto& [known, unicode, ascii] : names) {
      if (name != known) continue;
      const std::string_view members = rust_ ? ascii : unicode;
      if (negated)
        set.others.push_back(fmt::format("[^{}]", members));
      else
        set.simple += members;
      at_ = end + 2;
      return true;
    }
    refuse(in_.substr(at_, end + 2 - at_));
  }

  void open_group() {
    require(groups_.size() < kDeepest, "{}: the regular expression has groups nested too deeply", where_);
    const std::string_view rest = in_.substr(at_);
    if (rest.starts_with("(?#")) {
      const size_t close = in_.find(')', at_);
      require(close != std::string_view::npos, "{}: the regular expression has a comment without end",
              where_);
      at_ = close + 1;
      return;
    }
    const size_t begin = out_.size();
    if (!rest.starts_with("(?")) {
      groups_.push_back(begin);
      return copy(1);
    }
    for (const std::string_view known : {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?<", "(?P<"})
      if (rest.starts_with(known)) {
        groups_.push_back(begin);
        return copy(known.size());
      }
    group_flags(begin);
  }

  // (?i), (?i:...), (?m) and their likes. Oniguruma's m lets '.' match a newline, which is PCRE2's s.
  void group_flags(size_t begin) {
    size_t end = at_ + 2;
    std::string flags;
    for (; end < in_.size() && in_[end] != ':' && in_[end] != ')'; ++end) {
      const char flag = in_[end];
      if (flag != 'i' && flag != '-' && flag != 'm' && flag != 'x' && !(rust_ && flag == 's'))
        refuse(in_.substr(at_, 4));
      flags += flag == 'm' && !rust_ ? 's' : flag;
    }
    require(end < in_.size(), "{}: the regular expression has a group without end", where_);
    if (in_[end] == ':') groups_.push_back(begin);
    out_ += fmt::format("(?{}{}", flags, in_[end]);
    at_ = end + 1;
  }

  void repeat() {
    const size_t close = in_.find('}', at_);
    const std::string_view inner =
        close == std::string_view::npos ? "" : in_.substr(at_ + 1, close - at_ - 1);
    const bool counts =
        !inner.empty() && inner != "," && inner.find_first_not_of("0123456789,") == std::string_view::npos;
    if (!counts) {
      atom_ = out_.size();
      out_ += instead("\\{", 1);
      return;
    }
    out_ += fmt::format("{{{}{}}}", inner.starts_with(',') ? "0" : "", inner);
    at_ = close + 1;
    if (rust_ || peek() != '+') return;
    out_.insert(atom_, "(?:");  // to Oniguruma the + is one more repetition, to PCRE2 it would be possessive
    out_ += ')';
  }

  std::string_view in_;
  const std::string& where_;
  bool rust_;
  std::string_view word_;
  std::string out_;
  size_t at_ = 0, atom_ = 0;    // atom_: where in out_ begins what a quantifier would repeat
  std::vector<size_t> groups_;  // where in out_ the open groups begin
};

}  // namespace

std::string translate_pattern(std::string_view pattern, const std::string& where, RegexDialect dialect) {
  return Translator(pattern, where, dialect).run();
}

}  // namespace weft
