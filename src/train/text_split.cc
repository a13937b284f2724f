#include "train/text_split.h"

#include <algorithm>
#include <cmath>

namespace weft {
namespace {

// The place in `document` at or after `offset` where it may be cut.
size_t cut_in(const std::string& document, size_t offset) {
  if (offset == 0) return 0;
  const size_t line = document.find('\n', offset - 1);
  if (line != std::string::npos && line + 1 < document.size()) return line + 1;
  while (offset < document.size() && (document[offset] & 0xc0) == 0x80) ++offset;  // inside a UTF-8 character
  return offset;
}

class PartOfText final : public TextSource {
 public:
  PartOfText(std::unique_ptr<TextSource> source, const TextSplit& split, bool after)
      : source_(std::move(source)), cut_(split.bytes), after_(after) {}

  bool next(std::string& document) override {
    while (source_->next(document)) {
      const uint64_t begin = passed_;
      passed_ += document.size();
      if (passed_ > cut_) {
        const size_t at = begin >= cut_ ? 0 : cut_in(document, static_cast<size_t>(cut_ - begin));
        document = after_ ? document.substr(at) : document.substr(0, at);
        if (!after_ && document.empty()) return false;
      } else if (after_) {
        continue;
      }
      if (!document.empty()) return true;
    }
    return false;
  }
  uint64_t bytes_done() const override { return source_->bytes_done(); }
  uint64_t bytes_total() const override { return source_->bytes_total(); }

 private:
  std::unique_ptr<TextSource> source_;
  uint64_t cut_, passed_ = 0;
  bool after_;
};

}  // namespace

TextSplit split_text(TextSource& source, double fraction) {
  std::vector<uint64_t> ends;  // of documents
  uint64_t total = 0;
  for (std::string document; source.next(document);) ends.push_back(total += document.size());
  const auto cut = static_cast<uint64_t>(std::llround(static_cast<double>(total) * (1 - fraction)));
  const auto distance = [&](uint64_t at) { return at > cut ? at - cut : cut - at; };
  const auto nearer = [&](uint64_t a, uint64_t b) { return distance(a) < distance(b); };
  if (!ends.empty()) ends.pop_back();  // the end of everything
  const auto nearest = std::min_element(ends.begin(), ends.end(), nearer);
  return {nearest != ends.end() && distance(*nearest) <= (total - cut) / 2 ? *nearest : cut};
}

std::unique_ptr<TextSource> before_split(std::unique_ptr<TextSource> source, const TextSplit& split) {
  return std::make_unique<PartOfText>(std::move(source), split, false);
}
std::unique_ptr<TextSource> after_split(std::unique_ptr<TextSource> source, const TextSplit& split) {
  return std::make_unique<PartOfText>(std::move(source), split, true);
}

}  // namespace weft
