// Files that want to do harm: each is refused with a message that names file and place, in bounded time.
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "io/tokenizers/base64.h"
#include "io/tokenizers/json_tokenizer.h"
#include "io/tokenizers/protobuf.h"
#include "io/tokenizers/sentencepiece_tokenizer.h"
#include "io/tokenizers/tiktoken.h"

namespace weft {
namespace {

using nlohmann::json;

constexpr double kSecondsAllowed = 10;  // for one file on a busy machine; most take a millisecond

struct Hostile {
  std::string name, bytes, message;  // the message begins so
  std::string text = "some text";    // what to encode with a file that can be opened
};

std::string message_of(const Hostile& file) {
  try {
    const auto tokenizer = read_tokenizer(file.bytes, file.name);
    tokenizer->decode(tokenizer->encode(file.text));
  } catch (const InputError& error) {
    return error.what();
  } catch (const Unsupported& error) {
    return error.what();
  }
  return "(accepted)";
}

void expect_refused(const std::vector<Hostile>& files) {
  for (const Hostile& file : files) {
    const auto start = std::chrono::steady_clock::now();
    const std::string message = message_of(file);
    EXPECT_EQ(message.substr(0, file.message.size()), file.message) << message.substr(0, 300);
    EXPECT_LT(message.size(), 5000u);
    EXPECT_LT(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(),
              kSecondsAllowed)
        << file.message;
  }
}

json small() {
  return json::parse(R"({"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null,
    "post_processor": null, "decoder": null,
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}})");
}

// The small tokenizer with the value at `pointer` replaced.
std::string with(const std::string& pointer, const std::string& value) {
  json root = small();
  root[json::json_pointer(pointer)] = json::parse(value);
  return root.dump();
}

std::string precompiled(const std::string& table) {
  return with("/normalizer", json{{"type", "Precompiled"}, {"precompiled_charsmap", table}}.dump());
}

std::string nested(const std::string& open, const std::string& inside, const std::string& close, int depth) {
  std::string text = inside;
  for (int i = 0; i < depth; ++i) text = open + text + close;
  return text;
}

TEST(HostileFiles, TokenizerJsonThatIsBroken) {
  const std::string whole = small().dump();
  expect_refused({
      {"empty.json", "", "empty.json: is empty"},
      {"cut.json", whole.substr(0, whole.size() / 2), "cut.json: not valid JSON"},
      {"list.json", "[]", "list.json: (top level): expected an object"},
      {"text.json", "\"tokenizer\"", "text.json: (top level): expected an object"},
      {"utf8.json", "{\"model\": \"\xff\xfe\"}", "utf8.json: not valid JSON"},
      {"deep.json", std::string(1'000'000, '['), "deep.json: nested more than 64 deep"},
      {"twice.json", R"({"version": "1.0", "version": "1.0"})",
       "twice.json: the key 'version' is given twice"},
      {"twice2.json", R"({"model": {"vocab": {"a": 0, "a": 1}}})", "twice2.json: the key 'a' is given twice"},
      {"none.json", R"({"version": "1.0"})", "none.json: (top level): 'model' is missing"},
      {"model.json", with("/model", "7"), "model.json: model: expected an object, found 7"},
      {"type.json", with("/model/type", "[1]"), "type.json: model.type: expected text"},
  });
}

TEST(HostileFiles, TokenizerJsonThatContradictsItself) {
  expect_refused({
      {"v.json", with("/model/vocab/a", "-1"), "v.json: model.vocab: 'a' has the id -1"},
      {"v.json", with("/model/vocab/a", "1e300"), "v.json: model.vocab: 'a' has the id 1e+300"},
      {"v.json", with("/model/vocab/a", "99999999999"), "v.json: model.vocab: 'a' has the id 99999999999"},
      {"v.json", with("/model/vocab/a", "1"), "v.json: model.vocab:"},
      {"v.json", with("/model/vocab", "{}"), "v.json: model.vocab: is empty"},
      {"m.json", with("/model/merges", R"([["a", "zz"]])"),
       "m.json: model.merges[0]: 'zz' is not in the vocabulary"},
      {"m.json", with("/model/merges", R"([["b", "a"]])"),
       "m.json: model.merges[0]: 'ba' is not in the vocabulary"},
      {"m.json", with("/model/merges", R"(["a b c"])"), "m.json: model.merges[0]: expected two tokens"},
      {"m.json", with("/model/merges", "{\"a\": 1}"), "m.json: model.merges: expected a list"},
      {"u.json", with("/model/unk_token", "\"none\""),
       "u.json: model.unk_token: 'none' is not in the vocabulary"},
      {"a.json", with("/added_tokens", R"([{"id": 1, "content": "x"}])"),
       "a.json: added_tokens: 'x' has the id 1, which"},
      {"a.json", with("/added_tokens", R"([{"id": -5, "content": "x"}])"), "a.json: added_tokens: the id -5"},
      {"a.json", with("/added_tokens", R"([{"id": 5, "content": ""}])"),
       "a.json: added_tokens[0].content: is empty"},
      {"p.json",
       with("/post_processor", R"({"type": "BertProcessing", "sep": ["x", 900], "cls": ["y", 901]})"),
       "p.json: post_processor: the id 901"},
      {"g.json", with("/model", R"({"type": "Unigram", "unk_id": 9, "vocab": [["a", -1.0]]})"),
       "g.json: model.unk_id: the id 9"},
      {"g.json", with("/model", R"({"type": "Unigram", "unk_id": 0, "vocab": [["a"]]})"),
       "g.json: model.vocab[0]: expected"},
      {"g.json", with("/model", R"({"type": "Unigram", "unk_id": 0, "vocab": []})"),
       "g.json: model.vocab: is empty"},
      {"w.json", with("/model", R"({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "u"})"),
       "w.json: model: the text has a word without a token"},
  });
}

TEST(HostileFiles, StepsThatAreWrong) {
  const std::string sequence =
      nested(R"({"type": "Sequence", "normalizers": [)", R"({"type": "NFC"})", "]}", 20);
  const std::string cut =
      R"({"type": "Split", "behavior": "Isolated", "invert": false, "pattern": {"Regex": )";
  expect_refused({
      {"n.json", with("/normalizer", sequence), "n.json: normalizer.normalizers[0]"},
      {"n.json", with("/normalizer", R"({"type": "Replace", "pattern": {"String": ""}, "content": "x"})"),
       "n.json: normalizer.pattern.String: is empty"},
      {"r.json", with("/pre_tokenizer", cut + R"("(a"}})"),
       "r.json: pre_tokenizer.pattern.Regex: the regular expression"},
      {"r.json",
       with("/pre_tokenizer", cut + json(std::string(100, '(') + std::string(100, ')')).dump() + "}}"),
       "r.json: pre_tokenizer.pattern.Regex: the regular expression has groups nested too deeply"},
      {"r.json", with("/pre_tokenizer", cut + json(std::string(200'000, 'a')).dump() + "}}"),
       "r.json: pre_tokenizer.pattern.Regex: the regular expression has 200000 bytes"},
      {"r.json", with("/pre_tokenizer", cut + R"("(a+)+$"}})"),
       "r.json: pre_tokenizer.pattern.Regex: matching the regular expression failed",
       std::string(3000, 'a') + "b"},
      {"f.json", with("/pre_tokenizer", R"({"type": "FixedLength", "length": 0})"),
       "f.json: pre_tokenizer.length: is 0"},
      {"d.json", with("/decoder", R"({"type": "Strip", "content": "", "start": 1, "stop": 0})"),
       "d.json: decoder.content: expected one character"},
      {"d.json", with("/decoder", R"({"type": "Strip", "content": " ", "start": -1, "stop": 0})"),
       "d.json: decoder.start: -1"},
      {"c.json", precompiled("%%%"), "c.json: normalizer.precompiled_charsmap: is not base64"},
      {"c.json", precompiled(to_base64("ab")), "c.json: normalizer.precompiled_charsmap: has 2 bytes"},
      {"c.json", precompiled(to_base64(std::string("\xff\xff\xff\x7f") + std::string(8, 'x'))),
       "c.json: normalizer.precompiled_charsmap: says that its trie has 2147483647 bytes"},
      {"c.json", precompiled(to_base64(std::string("\x04\0\0\0", 4) + "\xff\xff\xff\xff" + "text")),
       "c.json: normalizer.precompiled_charsmap: its last text is not ended"},
  });
}

std::string piece(const std::string& text, float score, int type) {
  ProtoWriter entry, file;
  entry.bytes(1, text);
  entry.number(2, score);
  entry.integer(3, static_cast<uint64_t>(type));
  file.bytes(1, entry.message());
  return file.message();
}

TEST(HostileFiles, SentencePieceModels) {
  const std::string unknown = piece("<unk>", 0, 2);
  ProtoWriter fallback, trainer, charsmap, normalizer;
  fallback.integer(35, 1);
  trainer.bytes(2, fallback.message());
  charsmap.bytes(2, "abc");
  normalizer.bytes(3, charsmap.message());
  expect_refused({
      {"s.model", unknown.substr(0, 5), "s.model: field 1 at byte 0 has"},
      {"s.model", "\n\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "s.model: the number before byte"},
      {"s.model", "\n\x80", "s.model: ends within a number"},
      {"s.model", unknown + "\x07", "s.model: has a field with the number 0"},
      {"s.model", unknown + "\x0b", "s.model: field 1 at byte"},
      {"s.model", piece("a", 0, 1), "s.model: has 0 unknown pieces, expected 1"},
      {"s.model", unknown + piece("<u2>", 0, 2), "s.model: has 2 unknown pieces"},
      {"s.model", unknown + piece("a", 0, 1) + piece("a", 0, 1), "s.model: pieces[2]: 'a' is there twice"},
      {"s.model", unknown + piece("", 0, 1), "s.model: pieces[1]: is empty"},
      {"s.model", unknown + piece("\xff", 0, 1), "s.model: pieces[1]: piece (field 1) is not UTF-8"},
      {"s.model", unknown + piece("a", 0, 9), "s.model: pieces[1]: type is 9"},
      {"s.model", unknown + piece("a", NAN, 1),
       "s.model: pieces[1]: the score of 'a' is not a finite number"},
      {"s.model", unknown + trainer.message(), "s.model: has byte_fallback but no piece <0x00>"},
      {"s.model", unknown + normalizer.message(),
       "s.model: normalizer_spec.precompiled_charsmap: has 3 bytes"},
  });
}

TEST(HostileFiles, TokenListsInText) {
  std::string all;
  for (int i = 0; i < 256; ++i)
    all += to_base64(std::string(1, static_cast<char>(i))) + fmt::format(" {}\n", i);
  expect_refused({
      {"cl100k_base.tiktoken", "YQ== 0\nYg== x\n", "cl100k_base.tiktoken:2: the rank is not"},
      {"cl100k_base.tiktoken", "YQ== 0\n*** 1\n", "cl100k_base.tiktoken:2: the token is not base64"},
      {"cl100k_base.tiktoken", "YQ== 0\nYg== 0\n", "cl100k_base.tiktoken:2: the rank 0 is there twice"},
      {"cl100k_base.tiktoken", "YQ== 99999999999999999999\n", "cl100k_base.tiktoken:1: the rank is not"},
      {"cl100k_base.tiktoken", "YQ== 0\n", "cl100k_base.tiktoken: the byte 0x00 has no token"},
      {"cl100k_base.tiktoken", all + "YQ== 300\n",
       "cl100k_base.tiktoken: the ranks 97 and 300 have the same token"},
      {"x.tiktoken", all, "x.tiktoken: the file does not say by which pattern"},
      {"r.txt", "1 'a' 2\n", "r.txt:1: the token has 1 bytes, but the line says 2"},
      {"r.txt", "1 'a' 1\n1 'b' 1\n", "r.txt:2: the id 1 is there twice"},
      {"r.txt", "0 'a' 1\n", "r.txt:1: the id 0 is kept"},
      {"r.txt", "1 '\\xg1' 1\n", "r.txt:1: the literal has an escape without 2"},
      {"r.txt", "1 '\\ud800' 3\n", "r.txt:1: the literal has U+D800"},
      {"r.txt", "1 'a 1\n", "r.txt:1: expected a Python literal"},
      {"r.txt", "1 'a' 1\n", "r.txt: the byte 0x00 has no token"},
  });
}

TEST(LongTexts, TakeTimeInProportion) {
  json root = small();
  const auto bpe = make_json_tokenizer(root.dump(), "t");
  std::string text;
  for (int i = 0; i < 500'000; ++i) text += "ab";
  EXPECT_EQ(bpe->encode(text).size(), 500'000u);
  root["model"] = json::parse(
      R"({"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0], ["a", -2], ["b", -2], ["ab", -1]]})");
  EXPECT_EQ(make_json_tokenizer(root.dump(), "t")->encode(text).size(), 500'000u);
  root["model"] = json::parse(R"({"type": "WordPiece", "vocab": {"[UNK]": 0, "ab": 1, "##ab": 2},
    "max_input_chars_per_word": 2000000})");
  EXPECT_EQ(make_json_tokenizer(root.dump(), "t")->encode(text).size(), 500'000u);
}

}  // namespace
}  // namespace weft
