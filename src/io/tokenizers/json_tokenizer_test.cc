#include "io/tokenizers/json_tokenizer.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <thread>

#include "base/error.h"
#include "base/files.h"
#include "base/scratch_folder.h"
#include "io/tokenizers/utf8.h"

namespace weft {
namespace {

using nlohmann::json;
using Ids = std::vector<int64_t>;

// Definitions, texts and expected ids: made by tools/make_tokenizer_cases.py.
const json& cases() {
  static const json all = json::parse(read_text("tests/data/tokenizers/cases.json"));
  return all;
}

// The base definition with some members replaced.
json definition(const json& changes = json::object()) {
  json whole = cases()["base"];
  for (const auto& [key, value] : changes.items()) whole[key] = value;
  return whole;
}

json changes_of(const std::string& name) {
  for (const json& variant : cases()["variants"])
    if (variant["name"] == name) return variant["changes"];
  ADD_FAILURE() << "no variant " << name;
  return {};
}

std::shared_ptr<const Tokenizer> make(const json& changes = json::object(), const std::string& end = "") {
  TokenizerConfig config;
  if (!end.empty()) config = read_tokenizer_config(json{{"eos_token", end}}.dump(), "t.json");
  return make_json_tokenizer(definition(changes).dump(), "t.json", config);
}

std::string streamed(const Tokenizer& tokenizer, const Ids& ids) {
  StreamDecoder stream(tokenizer);
  std::string text;
  for (const int64_t id : ids) text += stream.push(id);
  return text + stream.finish();
}

void expect_as_expected(const Tokenizer& tokenizer, const json& variant, size_t i) {
  const auto text = cases()["texts"][i].get<std::string>();
  const auto ids = variant["ids"][i].get<Ids>();
  // Beside the ids only what differs is in the file.
  const auto value = [&](const char* key, auto otherwise) {
    return variant[key].value(std::to_string(i), otherwise);
  };
  EXPECT_EQ(tokenizer.encode(text), ids);
  EXPECT_EQ(tokenizer.encode(text, {.add_special = true}), value("ids_with_special", ids));
  EXPECT_EQ(tokenizer.encode(text, {.parse_special = false}), value("ids_special_as_text", ids));
  const std::string decoded = value("decoded", text);
  EXPECT_EQ(to_utf8(tokenizer.decode(ids)), decoded);
  EXPECT_EQ(to_utf8(tokenizer.decode(ids, true)), value("decoded_skip", decoded));
  EXPECT_EQ(streamed(tokenizer, ids), decoded);
}

TEST(JsonTokenizer, AgreesWithHuggingFacesLibrary) {
  for (const json& variant : cases()["variants"]) {
    const auto made = make(variant["changes"]);
    const Tokenizer& tokenizer = *made;
    for (size_t i = 0; i < cases()["texts"].size(); ++i) {
      SCOPED_TRACE(variant["name"].get<std::string>() + ": " + cases()["texts"][i].dump());
      expect_as_expected(tokenizer, variant, i);
    }
  }
}

TEST(JsonTokenizer, BytesThatAreNotUtf8SurviveARoundTrip) {
  const auto made = make();
  const Tokenizer& tokenizer = *made;
  for (const std::string text : {"\xff", "a\xc3", "\xe6\x9d the \x80\x80", "\xed\xa0\x80", "\xc0\xaf the"}) {
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
  }
}

TEST(JsonTokenizer, StrayBytesWithoutATokenBecomeTheReplacementCharacter) {
  json changes = {{"model", definition()["model"]}};
  changes["model"]["vocab"].erase("\u00c0");  // the letter of the byte C0
  const auto made = make(changes);
  const Tokenizer& tokenizer = *made;
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("a\xc0z")), "a\xEF\xBF\xBDz");
}

TEST(JsonTokenizer, ALetterWithoutATokenIsLeftOutWithoutAnUnknownToken) {
  json changes = {{"model", definition()["model"]}};
  changes["model"]["vocab"].erase("Z");
  EXPECT_EQ(make(changes)->encode("aZz"), make()->encode("az"));
}

TEST(JsonTokenizer, DecodesPartsOfCharactersAsTheStandardSays) {
  const auto made = make();
  const Tokenizer& tokenizer = *made;
  const auto decode = [&](const std::string& bytes) {
    Ids ids;
    for (const char byte : bytes) ids.push_back(tokenizer.encode(std::string(1, byte)).at(0));
    StreamDecoder stream(tokenizer);
    std::string text;
    for (const int64_t id : ids) {
      text += stream.push(id);
      EXPECT_TRUE(is_utf8(text));
    }
    text += stream.finish();
    EXPECT_EQ(text, to_utf8(bytes));
    return text;
  };
  const std::string bad = "\xEF\xBF\xBD";
  EXPECT_EQ(decode("\xF0\x9F\x99"), bad);
  EXPECT_EQ(decode("\xF0\x9F\x99\x82"), "🙂");
  EXPECT_EQ(decode("\xC0\x80"), bad + bad);
  EXPECT_EQ(decode("\xED\xA0\x80"), bad + bad + bad);
  EXPECT_EQ(decode("\xF4\x90\x80\x80"), bad + bad + bad + bad);
  EXPECT_EQ(decode("\xE6\x9D"
                   "A"),
            bad + "A");
}

TEST(JsonTokenizer, KnowsItsTokens) {
  const auto made = make(changes_of("flags"));
  const Tokenizer& tokenizer = *made;
  EXPECT_EQ(tokenizer.vocab_size(), 406);
  EXPECT_EQ(tokenizer.find("<|end|>"), 400);
  EXPECT_EQ(tokenizer.find("none"), std::nullopt);
  EXPECT_EQ(tokenizer.token_bytes(*tokenizer.find("Ġthe")), " the");
  EXPECT_TRUE(tokenizer.is_special(400));
  EXPECT_FALSE(tokenizer.is_special(401));
  EXPECT_FALSE(tokenizer.is_token(-1));
  EXPECT_FALSE(tokenizer.is_token(406));
  EXPECT_THROW(tokenizer.token_bytes(406), InputError);
  EXPECT_THROW(tokenizer.decode({-1}), InputError);
  EXPECT_EQ(tokenizer.end_of_text(), std::nullopt);  // <|end|> is none of the usual names
  EXPECT_EQ(make(changes_of("flags"), "<|end|>")->end_of_text(), 400);
  EXPECT_THROW(make(changes_of("flags"), "<|stop|>"), InputError);
}

TEST(JsonTokenizer, TheFingerprintFollowsTheDefinition) {
  const std::string base = make()->fingerprint();
  EXPECT_EQ(base.substr(0, 4), "bpe-");
  EXPECT_EQ(make()->fingerprint(), base);
  EXPECT_EQ(make(changes_of("legacy_merges"))->fingerprint(), base);  // the same merges written otherwise
  for (const char* name : {"prefix_space", "llama3", "o200k", "flags", "nfkc", "literal"})
    EXPECT_NE(make(changes_of(name))->fingerprint(), base) << name;
  EXPECT_NE(make(changes_of("flags"), "<|end|>")->fingerprint(), make(changes_of("flags"))->fingerprint());
}

TEST(JsonTokenizer, SavesAndLoads) {
  const ScratchFolder folder;
  const auto made = make(changes_of("flags_nfc"), "<|end|>");
  const Tokenizer& tokenizer = *made;
  tokenizer.save(folder.file("tokenizer.json"));
  write_atomically(folder.file("tokenizer_config.json"),
                   R"({"eos_token": {"content": "<|end|>"}, "other": 1})");
  for (const std::string& where : {folder.path(), folder.file("tokenizer.json")}) {
    const auto loaded = load_tokenizer(where);
    EXPECT_EQ(loaded->fingerprint(), tokenizer.fingerprint());
    EXPECT_EQ(loaded->end_of_text(), 400);
  }
  write_atomically(folder.file("tokenizer_config.json"), R"({"eos_token": "<|none|>"})");
  EXPECT_THROW(load_tokenizer(folder.path()), InputError);
  EXPECT_THROW(load_tokenizer(folder.file("none")), InputError);
}

TEST(JsonTokenizer, ThreadsShareIt) {
  const auto made = make();
  const Tokenizer& tokenizer = *made;
  const json& texts = cases()["texts"];
  std::vector<Ids> results(4);
  std::vector<std::thread> threads;
  for (auto& result : results)
    threads.emplace_back([&] {
      for (int round = 0; round < 5; ++round)
        for (const json& text : texts)
          for (const int64_t id : tokenizer.encode(text.get<std::string>())) result.push_back(id);
    });
  for (auto& thread : threads) thread.join();
  for (const auto& result : results) EXPECT_EQ(result, results[0]);
}

// What `make` says to a definition in which the value at a JSON pointer is replaced (or removed, by a null
// string).
std::string error_with(const std::string& pointer, const std::string& value) {
  json whole = definition(changes_of("llama3"));
  whole[json::json_pointer(pointer)] = json::parse(value);
  try {
    make_json_tokenizer(whole.dump(), "t.json");
  } catch (const Error& error) {
    return error.what();
  }
  return "(accepted)";
}

TEST(JsonTokenizer, WhatIsNotUnderstoodIsAnErrorWithItsPlace) {
  const auto expect = [](const std::string& pointer, const std::string& value, const std::string& message) {
    EXPECT_EQ(error_with(pointer, value).find(message), 0u) << error_with(pointer, value);
  };
  expect("/surprise", "1", "t.json: surprise: not understood (value 1); known here are version");
  expect("/version", "\"2.0\"", "t.json: version: found '2.0'");
  expect("/model/type", "\"Other\"", "t.json: model: the model 'Other' is not supported");
  expect("/model/dropout", "\"x\"", "t.json: model.dropout: expected a number");
  expect("/model/surprise", "[]", "t.json: model.surprise: not understood");
  expect("/model/unk_token", "\"nothing\"", "t.json: model.unk_token: 'nothing' is not in the vocabulary");
  expect("/model/vocab/a", "-1", "t.json: model.vocab: 'a' has the id -1");
  expect("/model/vocab/a", "4000000000", "t.json: model.vocab: 'a' has the id 4000000000");
  expect("/model/vocab/a", "18446744073709551615", "t.json: model.vocab: 'a' has the id");
  expect("/model/vocab/a", "\"x\"", "t.json: model.vocab: 'a' has the id \"x\"");
  expect("/model/vocab/a", "1", "t.json: model.vocab:");
  expect("/model/vocab", "{}", "t.json: model.vocab: is empty");
  expect("/model/merges/3", "[\"a\"]", "t.json: model.merges[3]: expected two tokens");
  expect("/model/merges/3", "\"a b c\"", "t.json: model.merges[3]: expected two tokens with one space");
  expect("/model/merges/3", "[\"zz\", \"q\"]", "t.json: model.merges[3]: 'zz' is not in the vocabulary");
  expect("/model/merges", "{}", "t.json: model.merges: expected a list");
  expect("/normalizer", R"({"type":"Upper"})", "t.json: normalizer: the normalizer 'Upper'");
  expect("/normalizer", R"({"type":"NFC","x":1})", "t.json: normalizer.x: not understood");
  expect("/pre_tokenizer/pretokenizers/0/type", "\"Chop\"",
         "t.json: pre_tokenizer.pretokenizers[0]: the pre-tokenizer 'Chop'");
  expect("/pre_tokenizer/pretokenizers/0/behavior", "\"Sometimes\"",
         "t.json: pre_tokenizer.pretokenizers[0].behavior: found 'Sometimes'");
  expect("/pre_tokenizer/pretokenizers/0/pattern/Regex", "\"(a\"",
         "t.json: pre_tokenizer.pretokenizers[0].pattern.Regex: the regular expression is wrong");
  expect("/pre_tokenizer/pretokenizers/0/pattern/Regex", R"("\\ythe")",
         "t.json: pre_tokenizer.pretokenizers[0].pattern.Regex: the regular expression has \\y at byte 0");
  expect("/post_processor", R"({"type":"Other"})", "t.json: post_processor: the post-processor 'Other'");
  expect("/post_processor/processors/1/special_tokens/<|end|>/ids", "[9999]",
         "t.json: post_processor: the id 9999 is not in the vocabulary");
  expect("/decoder/type", "\"Unpack\"", "t.json: decoder: the decoder 'Unpack'");
  expect("/added_tokens/0/id", "3", "t.json: added_tokens: '<|end|>' has the id 3, which is already");
  expect("/added_tokens/0/id", "999999999",
         "t.json: added_tokens: the id 999999999 of '<|end|>' is not from 0");
  expect("/added_tokens/0/content", "\"a\"", "t.json: added_tokens: 'a' has the id 400 here and");
  expect("/added_tokens/0/content", "\"\"", "t.json: added_tokens[0].content: is empty");
  expect("/added_tokens/0/colour", "1", "t.json: added_tokens[0].colour: not understood");
  expect("/added_tokens/1", R"({"id":401,"content":"<|end|>"})",
         "t.json: added_tokens[1]: '<|end|>' is there twice");
  std::string nested = R"({"type":"NFC"})";
  for (int i = 0; i < 20; ++i) nested = R"({"type":"Sequence","normalizers":[)" + nested + "]}";
  expect("/normalizer", nested, "t.json: normalizer.normalizers[0]");
  EXPECT_THROW(make_json_tokenizer("{\"surprise\":" + std::string(1'000'000, '['), "t.json"), InputError);
}

// Tokenizers, texts, ids and decoded texts of published kinds, and small ones of every component.
void expect_fixture(const Tokenizer& tokenizer, const json& expected) {
  for (const json& one : expected["cases"]) {
    SCOPED_TRACE(one["text"].dump());
    const Ids ids = one["ids"].get<Ids>();
    EXPECT_EQ(tokenizer.encode(one["text"].get<std::string>()), ids);
    if (one.contains("ids_with_special")) {
      EXPECT_EQ(tokenizer.encode(one["text"].get<std::string>(), {.add_special = true}),
                one["ids_with_special"].get<Ids>());
    }
    EXPECT_EQ(to_utf8(tokenizer.decode(ids)), one["decoded"].get<std::string>());
    EXPECT_EQ(streamed(tokenizer, ids), one["decoded"].get<std::string>());
    if (one.contains("decoded_skip")) {
      EXPECT_EQ(to_utf8(tokenizer.decode(ids, true)), one["decoded_skip"].get<std::string>());
    }
  }
  for (const json& one : expected.value("decode_cases", json::array())) {
    EXPECT_EQ(to_utf8(tokenizer.decode(one["ids"].get<Ids>())), one["decoded"].get<std::string>());
    EXPECT_EQ(streamed(tokenizer, one["ids"].get<Ids>()), one["decoded"].get<std::string>());
  }
}

TEST(JsonTokenizer, AgreesWithTheFixtures) {
  for (const std::string name : {"bpe512", "bpe512_special"}) {
    SCOPED_TRACE(name);
    const std::string folder = "tests/data/tokenizers/" + name;
    expect_fixture(*load_tokenizer(folder), json::parse(read_text(folder + "/expected.json")));
  }
}

TEST(JsonTokenizer, EveryComponentAgreesWithHuggingFacesLibrary) {
  const json all = json::parse(read_text("tests/data/tokenizers/components.json"));
  for (const json& one : all["tokenizers"]) {
    SCOPED_TRACE(one["name"].get<std::string>());
    json whole = one["definition"];
    whole["model"] = all["models"][whole["model"].get<std::string>()];
    json expected = one;
    for (size_t i = 0; i < all["texts"].size(); ++i) expected["cases"][i]["text"] = all["texts"][i];
    expect_fixture(*make_json_tokenizer(whole.dump(), "t.json"), expected);
  }
}

TEST(JsonTokenizer, BrokenJsonIsAnError) {
  for (const char* text : {"", "{", "[]", "null", "{\"model\": \"\xff\"}", "{}"})
    EXPECT_THROW(make_json_tokenizer(text, "t.json"), Error) << text;
}

}  // namespace
}  // namespace weft
