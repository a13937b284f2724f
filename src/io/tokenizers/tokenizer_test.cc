#include "io/tokenizers/tokenizer.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "base/files.h"
#include "base/scratch_folder.h"
#include "io/tokenizers/byte_letters.h"
#include "io/tokenizers/byte_tokenizer.h"
#include "io/tokenizers/pre_tokenizer.h"
#include "io/tokenizers/regex.h"
#include "io/tokenizers/utf8.h"

namespace weft {
namespace {

using Ids = std::vector<int64_t>;
using Strings = std::vector<std::string>;

TEST(ByteTokenizer, EveryByteIsItsId) {
  const auto tokenizer = load_tokenizer("bytes");
  EXPECT_EQ(tokenizer->encode("A\xff"), (Ids{65, 255}));
  EXPECT_EQ(tokenizer->decode({72, 105, 256}), "Hi");
  EXPECT_EQ(tokenizer->vocab_size(), 257);
  EXPECT_EQ(tokenizer->end_of_text(), 256);
  EXPECT_EQ(tokenizer->find("<|endoftext|>"), 256);
  EXPECT_EQ(tokenizer->find("A"), 65);
  EXPECT_THROW(tokenizer->decode({257}), InputError);
  EXPECT_THROW(tokenizer->decode({-1}), InputError);
}

TEST(ByteTokenizer, SpecialTextIsSpecialOnlyWhenAsked) {
  const ByteTokenizer tokenizer;
  EXPECT_EQ(tokenizer.encode("a<|endoftext|>b"), (Ids{97, 256, 98}));
  EXPECT_EQ(tokenizer.encode("<|endoftext|>", {.parse_special = false}).size(), 13u);
}

TEST(ByteTokenizer, SavesAndLoads) {
  const ScratchFolder folder;
  ByteTokenizer().save(folder.file("tokenizer.json"));
  EXPECT_EQ(load_tokenizer(folder.path())->fingerprint(), ByteTokenizer().fingerprint());
}

TEST(StreamDecoder, GivesWholeCharactersOnly) {
  const ByteTokenizer tokenizer;
  StreamDecoder stream(tokenizer);
  EXPECT_EQ(stream.push(0xC3), "");
  EXPECT_EQ(stream.push(0xA9), "é");
  EXPECT_EQ(stream.push(0xE6), "");
  EXPECT_EQ(stream.push('x'), "\xEF\xBF\xBDx");
  EXPECT_EQ(stream.push(0xF0), "");
  EXPECT_EQ(stream.finish(), "\xEF\xBF\xBD");
  EXPECT_EQ(stream.finish(), "");
  EXPECT_EQ(stream.push('y'), "y");
}

TEST(Utf8, StepsAgreeWithTheEncoder) {
  for (uint32_t code = 0; code < 0x110000; code += code < 0x3000 ? 1 : 37) {
    if (code >= 0xD800 && code < 0xE000) continue;
    std::string text;
    append_utf8(text, code);
    const Utf8Step step = utf8_step(text, 0);
    ASSERT_EQ(step.kind, Utf8Step::Kind::character) << code;
    ASSERT_EQ(step.code, code);
    ASSERT_EQ(step.bytes, text.size());
    for (size_t cut = 1; cut < text.size(); ++cut) {
      const Utf8Step part = utf8_step(std::string_view(text).substr(0, cut), 0);
      ASSERT_EQ(part.kind, Utf8Step::Kind::incomplete);
      ASSERT_EQ(part.bytes, cut);
    }
  }
  EXPECT_FALSE(is_utf8("\xF4\x90\x80\x80"));
  EXPECT_TRUE(is_utf8("\xF4\x8F\xBF\xBF"));
}

TEST(ByteLetters, AreABijection) {
  std::string all;
  for (int byte = 0; byte < 256; ++byte) all += static_cast<char>(byte);
  EXPECT_EQ(letters_to_bytes(bytes_to_letters(all)), all);
  EXPECT_EQ(bytes_to_letters(" \n"), "ĠĊ");
  EXPECT_EQ(letters_to_bytes(" "), std::nullopt);
  EXPECT_EQ(bytes_by_letter().substr(0, 3), "!\"#");
}

TEST(Regex, IsTranslatedWhereTheDialectsDiffer) {
  const auto translate = [](const std::string& pattern) { return translate_pattern(pattern, "t"); };
  EXPECT_EQ(translate(R"(\s+(?!\S)|[^\s\p{L}]{1,3})"),
            R"(\p{White_Space}+(?!\P{White_Space})|[^\p{White_Space}\p{L}]{1,3})");
  EXPECT_EQ(translate(R"(\p{Han}\p{^Greek}\P{Lu})"), R"(\p{sc:Han}\p{^sc:Greek}\P{Lu})");
  EXPECT_EQ(translate(R"(\v\h[\h]\u00e9x{,3}{)"), R"(\x0B[0-9a-fA-F][0-9a-fA-F]\x{00e9}x{0,3}\{)");
  for (const char* pattern : {R"(\y)", R"(\pL)", R"((?q).)", R"([[:print:]])"})
    EXPECT_THROW(translate(pattern), Unsupported) << pattern;
  EXPECT_EQ(translate(R"([a[b]])"), "(?:(?:[a]|[b]))");
  EXPECT_EQ(translate(R"([^a&&b])"), "(?:(?!(?=[a])[b])(?s:.))");
  EXPECT_EQ(translate(R"([\p{L}&&[^x]]+)"), R"((?:(?=[\p{L}])(?:[^x]))+)");
  EXPECT_EQ(translate(R"((?m).(a)b{1,2}+)"), R"((?s).(a)(?:b{1,2})+)");
  EXPECT_EQ(translate_pattern("b{1,2}+", "t", RegexDialect::rust), "b{1,2}+");
  EXPECT_EQ(translate("[]a]"), "[\\]a]");
  for (const char* pattern : {R"(\)", R"([a)", R"(\u00g0)"})
    EXPECT_THROW(translate(pattern), InputError) << pattern;
  EXPECT_THROW(Regex("a)", "t"), InputError);
  EXPECT_THROW(Regex(R"(\p{Nonsense})", "t"), InputError);
}

TEST(Regex, FindsEmptyMatchesOnce) {
  std::vector<std::pair<size_t, size_t>> found;
  Regex("x*", "t").for_each_match("éxxa", [&](size_t begin, size_t end) { found.emplace_back(begin, end); });
  EXPECT_EQ(found, (std::vector<std::pair<size_t, size_t>>{{0, 0}, {2, 4}, {5, 5}}));
}

TEST(Regex, QuotesLiterals) {
  const std::string odd = "a.b|c\\d[e]{f}(g)^$*+?#-";
  EXPECT_EQ(split_by("x" + odd + "y", Regex(Regex::quote(odd), "t"), SplitBehavior::isolated, false),
            (Strings{"x", odd, "y"}));
}

TEST(Regex, LongMatchesDoNotExhaustTheStack) {
  const std::string text(2'000'000, 'a');
  EXPECT_EQ(split_by(text, Regex(R"(\p{L}+|(?:ab|a)+)", "t"), SplitBehavior::isolated, false).size(), 1u);
  EXPECT_EQ(split_by(text, Regex("(?:ab|a)+", "t"), SplitBehavior::isolated, false).size(), 1u);
}

}  // namespace
}  // namespace weft
