#include "train/text_split.h"

#include <gtest/gtest.h>

namespace weft {
namespace {

class Texts final : public TextSource {
 public:
  explicit Texts(std::vector<std::string> texts) : texts_(std::move(texts)) {}
  bool next(std::string& document) override {
    if (at_ == texts_.size()) return false;
    document = texts_[at_++];
    return true;
  }
  uint64_t bytes_done() const override { return at_; }
  uint64_t bytes_total() const override { return texts_.size(); }

 private:
  std::vector<std::string> texts_;
  size_t at_ = 0;
};

using List = std::vector<std::string>;

List all(std::unique_ptr<TextSource> source) {
  List list;
  for (std::string text; source->next(text);) list.push_back(text);
  return list;
}

std::pair<List, List> split(const List& texts, double fraction) {
  Texts whole(texts);
  const auto at = split_text(whole, fraction);
  return {all(before_split(std::make_unique<Texts>(texts), at)),
          all(after_split(std::make_unique<Texts>(texts), at))};
}

TEST(TextSplit, CutsAfterALineAndLosesNothing) {
  EXPECT_EQ(split({"aaaa\nbbbb\ncccc\ndddd\n"}, 0.5),
            (std::pair<List, List>{{"aaaa\nbbbb\n"}, {"cccc\ndddd\n"}}));
  EXPECT_EQ(split({"aaaa\nbbbb\ncccc\ndddd\n"}, 0.4),
            (std::pair<List, List>{{"aaaa\nbbbb\ncccc\n"}, {"dddd\n"}}));
  EXPECT_EQ(split({"one\n", "two\nxx\n", "three\n"}, 0.5),
            (std::pair<List, List>{{"one\n", "two\nxx\n"}, {"three\n"}}));
  EXPECT_EQ(split({"one\n", "two\nxx\nyy\n"}, 0.45),
            (std::pair<List, List>{{"one\n", "two\n"}, {"xx\nyy\n"}}));
}

TEST(TextSplit, WithoutLinesItCutsBetweenCharacters) {
  EXPECT_EQ(split({"aaaaéaaaaa"}, 0.55), (std::pair<List, List>{{"aaaaé"}, {"aaaaa"}}));
  EXPECT_EQ(split({"ab"}, 0.5), (std::pair<List, List>{{"a"}, {"b"}}));
}

TEST(TextSplit, EveryByteIsInExactlyOnePart) {
  const List texts{"first line\nsecond\n", "x", "no newline at the end", "last\n\n\n"};
  std::string whole;
  for (const auto& text : texts) whole += text;
  for (double fraction = 0.01; fraction < 1; fraction += 0.01) {
    const auto [before, after] = split(texts, fraction);
    std::string joined;
    for (const auto* part : {&before, &after})
      for (const auto& text : *part) joined += text;
    EXPECT_EQ(joined, whole) << fraction;
  }
}

}  // namespace
}  // namespace weft
