// Filters on texts.
#include <algorithm>

#include "io/chat_template/filter_arguments.h"
#include "io/chat_template/operators.h"
#include "io/chat_template/text_functions.h"

namespace weft::jinja {
namespace {

template <std::string (*transform)(std::string_view)>
Value mapped_text(Evaluator&, const Value& value, Arguments& arguments) {
  bind("this filter", arguments, {});
  return transform(soft_text(value));
}

// Jinja's own title case: every word behind blanks, hyphens and opening brackets.
std::string title_words(std::string_view text) {
  std::string out;
  bool begins = true;
  for (size_t at = 0; at < text.size();) {
    const size_t start = at;
    const auto point = next_point(text, at);
    const auto character = text.substr(start, at - start);
    const bool between =
        point == '-' || point == '(' || point == '{' || point == '[' || point == '<' || is_space(point);
    out += between ? std::string(character) : begins ? upper(character) : lower(character);
    begins = between;
  }
  return out;
}

Value trim(Evaluator&, const Value& value, Arguments& arguments) {
  const auto given = bind("trim", arguments, {"chars"});
  const auto text = soft_text(value);
  std::optional<std::string> chars;
  if (given[0] && !given[0]->is_none()) {
    require_defined(*given[0]);
    if (!given[0]->text()) fail("trim needs a text of characters, got {}", type_name(*given[0]));
    chars = given[0]->text()->bytes;
  }
  return std::string(strip(text, chars ? &*chars : nullptr));
}

Value replace_filter(Evaluator&, const Value& value, Arguments& arguments) {
  const auto given = bind("replace", arguments, {"old", "new", "count"}, 2);
  return replace(soft_text(value), soft_text(*given[0]), soft_text(*given[1]),
                 whole_of(given[2], -1, "count"));
}

Value indent(Evaluator&, const Value& value, Arguments& arguments) {
  const auto given = bind("indent", arguments, {"width", "first", "blank"});
  require_defined(value);
  if (!value.text()) fail("indent needs a text, got {}", type_name(value));
  const auto by =
      given[0] && given[0]->text() ? given[0]->text()->bytes : repeated(" ", whole_of(given[0], 4, "width"));
  const bool first = flag_of(given[1], false), blank = flag_of(given[2], false);
  const auto text = value.text()->bytes + "\n";
  const auto lines = split_lines(text);
  std::string out = first ? by : "";
  for (size_t i = 0; i < lines.size(); ++i) {
    expect_bytes(static_cast<int64_t>(out.size() + by.size() + lines[i].size()) + 1);
    if (i > 0) out += "\n";
    if (i > 0 && (blank || !lines[i].empty())) out += by;
    out += lines[i];
  }
  return out;
}

Value center_filter(Evaluator&, const Value& value, Arguments& arguments) {
  const auto given = bind("center", arguments, {"width"});
  return center(soft_text(value), whole_of(given[0], 80, "width"));
}

Value escape(Evaluator&, const Value& value, Arguments&) {
  if (value.text() && value.text()->safe) return value;
  return make_safe(escape_html(soft_text(value)));
}

Value force_escape(Evaluator&, const Value& value, Arguments&) {
  return make_safe(escape_html(soft_text(value)));
}
Value mark_safe(Evaluator&, const Value& value, Arguments&) { return make_safe(soft_text(value)); }
Value string(Evaluator&, const Value& value, Arguments&) { return value.text() ? value : Value(str(value)); }

Value format(Evaluator&, const Value& value, Arguments& arguments) {
  if (!arguments.positional.empty() && !arguments.named.empty())
    fail("format cannot handle positional and keyword arguments at the same time");
  if (arguments.named.empty())
    return format_percent(Value(soft_text(value)), make_tuple(arguments.positional));
  Dict::Entries entries;
  for (const auto& [name, each] : arguments.named) entries.emplace_back(Value(name), each);
  return format_percent(Value(soft_text(value)), make_dict(std::move(entries)));
}

Value truncate(Evaluator&, const Value& value, Arguments& arguments) {
  const auto given = bind("truncate", arguments, {"length", "killwords", "end", "leeway"});
  require_defined(value);
  if (!value.text()) fail("truncate needs a text, got {}", type_name(value));
  const auto& text = value.text()->bytes;
  const auto end = given[2] ? soft_text(*given[2]) : "...";
  const int64_t most = whole_of(given[0], 255, "length"), leeway = whole_of(given[3], 5, "leeway"),
                tail = static_cast<int64_t>(count_points(end));
  if (most < tail) fail("truncate: expected length >= {}, got {}", tail, most);
  if (leeway < 0) fail("truncate: expected leeway >= 0, got {}", leeway);
  const auto points = points_of(text);
  if (static_cast<int64_t>(points.size()) <= most + leeway) return value;
  const auto* stop = points[static_cast<size_t>(most - tail)].data();
  auto kept = text.substr(0, static_cast<size_t>(stop - text.data()));
  if (const size_t space = kept.rfind(' '); !flag_of(given[1], false) && space != std::string::npos)
    kept.resize(space);
  return kept + end;
}

Value wordcount(Evaluator&, const Value& value, Arguments&) {
  const auto text = soft_text(value);
  int64_t count = 0;
  bool inside = false;
  for (size_t at = 0; at < text.size();) {
    const bool word = is_word(next_point(text, at));
    count += word && !inside;
    inside = word;
  }
  return count;
}

// Lines of at most `width` characters, cut between words; words that are longer are cut where `cut` says so.
std::vector<std::string> wrapped(std::string_view line, int64_t width, bool cut) {
  std::vector<std::string> chunks, lines;
  for (const auto character : points_of(line)) {
    size_t at = 0, last = 0;
    const bool space = is_space(next_point(character, at));
    const bool joins = !chunks.empty() && is_space(next_point(chunks.back(), last)) == space;
    if (joins)
      chunks.back() += character;
    else
      chunks.emplace_back(character);
  }
  const auto blank = [](const std::string& chunk) { return strip(chunk, nullptr).empty(); };
  std::string current;
  int64_t room = width;
  const auto end_line = [&] {
    const auto text = strip(current, nullptr, false, true);
    if (!text.empty() || !current.empty()) lines.emplace_back(text);
    current.clear();
    room = width;
  };
  for (size_t i = 0; i < chunks.size();) {
    auto& chunk = chunks[i];
    if (current.empty() && !lines.empty() && blank(chunk)) {
      ++i;
      continue;
    }
    spend(chunk.size() / 16 + 1);
    const auto size = static_cast<int64_t>(count_points(chunk));
    if (size <= room) {
      current += chunk;
      room -= size;
      ++i;
    } else if (size > width && cut) {
      size_t at = 0;
      for (int64_t taken = 0; taken < std::max<int64_t>(room, current.empty() ? 1 : 0); ++taken)
        next_point(chunk, at);
      current += chunk.substr(0, at);
      chunk.erase(0, at);
      end_line();
    } else if (current.empty()) {
      current = chunk;
      ++i;
      end_line();
    } else {
      end_line();
    }
  }
  if (!strip(current, nullptr).empty()) end_line();
  return lines;
}

Value wordwrap(Evaluator&, const Value& value, Arguments& arguments) {
  const auto given =
      bind("wordwrap", arguments, {"width", "break_long_words", "wrapstring", "break_on_hyphens"});
  const int64_t width = whole_of(given[0], 79, "width");
  if (width <= 0) fail("invalid width {} (must be > 0)", width);
  const auto between = given[2] && !given[2]->is_none() ? soft_text(*given[2]) : "\n";
  const auto text = soft_text(value);
  std::string out;
  bool first = true;
  for (const auto line : split_lines(text)) {
    if (!first) out += between;
    first = false;
    const auto lines = wrapped(line, width, flag_of(given[1], true));
    for (size_t i = 0; i < lines.size(); ++i) {
      expect_bytes(static_cast<int64_t>(out.size() + between.size() + lines[i].size()));
      out += (i ? between : "") + lines[i];
    }
  }
  return out;
}

std::string quoted_for_url(std::string_view text, bool slash_too) {
  std::string out;
  for (const char c : text) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                       c == '_' || c == '.' || c == '-' || c == '~' || (c == '/' && !slash_too);
    if (plain)
      out += c;
    else if (c == ' ' && slash_too)
      out += '+';
    else
      out += fmt::format("%{:02X}", static_cast<unsigned char>(c));
  }
  return out;
}

Value urlencode(Evaluator&, const Value& value, Arguments&) {
  if (value.text() || (!value.dict() && !value.sequence())) return quoted_for_url(soft_text(value), false);
  std::string out;
  const auto add = [&](const Value& key, const Value& item) {
    out += (out.empty() ? "" : "&") + quoted_for_url(soft_text(key), true) + "=" +
           quoted_for_url(soft_text(item), true);
  };
  if (value.dict()) {
    for (const auto& [key, item] : value.dict()->entries) add(key, item);
    return out;
  }
  for (const auto& pair : items_of(value)) {
    const auto parts = items_of(pair);
    if (parts.size() != 2) fail("urlencode needs pairs");
    add(parts[0], parts[1]);
  }
  return out;
}

Value striptags(Evaluator&, const Value& value, Arguments&) {
  auto text = soft_text(value);
  for (const auto& [open, close] : {std::pair<std::string_view, std::string_view>{"<!--", "-->"}, {"<", ">"}})
    for (size_t begin = text.find(open); begin != std::string::npos; begin = text.find(open, begin)) {
      const size_t end = text.find(close, begin);
      if (end == std::string::npos) break;
      spend(text.size() / 64 + 1);
      text.erase(begin, end + close.size() - begin);
    }
  std::string out;
  for (const auto word : split(text, nullptr, -1, false)) (out += out.empty() ? "" : " ") += word;
  for (const auto& [name, meaning] : {std::pair<const char*, const char*>{"&lt;", "<"},
                                      {"&gt;", ">"},
                                      {"&#34;", "\""},
                                      {"&quot;", "\""},
                                      {"&#39;", "'"},
                                      {"&amp;", "&"}})
    out = replace(out, name, meaning);
  return out;
}

}  // namespace

const std::vector<FilterTable>& text_filters() {
  static const std::vector<FilterTable> filters = {{"upper", mapped_text<upper>},
                                                   {"lower", mapped_text<lower>},
                                                   {"capitalize", mapped_text<capitalize>},
                                                   {"title", mapped_text<title_words>},
                                                   {"trim", trim},
                                                   {"replace", replace_filter},
                                                   {"indent", indent},
                                                   {"center", center_filter},
                                                   {"escape", escape},
                                                   {"e", escape},
                                                   {"forceescape", force_escape},
                                                   {"safe", mark_safe},
                                                   {"string", string},
                                                   {"format", format},
                                                   {"truncate", truncate},
                                                   {"wordcount", wordcount},
                                                   {"wordwrap", wordwrap},
                                                   {"urlencode", urlencode},
                                                   {"striptags", striptags}};
  return filters;
}

}  // namespace weft::jinja
