#include "io/datasets/text_source.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "base/files.h"
#include "base/scratch_folder.h"

namespace weft {
namespace {

using Strings = std::vector<std::string>;

Strings all_of(TextSource& source) {
  Strings documents;
  std::string document;
  while (source.next(document)) documents.push_back(document);
  EXPECT_FALSE(source.next(document));
  EXPECT_EQ(source.bytes_done(), source.bytes_total());
  return documents;
}

Strings documents_of(const std::string& name, const std::string& content, const TextOptions& options = {}) {
  const ScratchFolder folder;
  write_atomically(folder.file(name), content);
  return all_of(*open_text(folder.file(name), options));
}

std::string error_of(const std::string& content, const TextOptions& options = {}) {
  try {
    documents_of("a.jsonl", content, options);
  } catch (const InputError& error) {
    return error.what();
  }
  return "(accepted)";
}

TEST(TextSource, AFileIsOneDocument) {
  EXPECT_EQ(documents_of("a.txt", "one\n\ftwo\xff\n"), (Strings{"one\n\ftwo\xff\n"}));
  EXPECT_EQ(documents_of("a.txt", ""), Strings{});
}

TEST(TextSource, SeparatorsCutDocuments) {
  EXPECT_EQ(documents_of("a.txt", "one\n\f\ntwo\f\f\nthree", {.separator = "\f"}),
            (Strings{"one\n", "two", "three"}));
  EXPECT_EQ(documents_of("a.txt", "\f\none\f\n", {.separator = "\f"}), (Strings{"one"}));
  EXPECT_EQ(documents_of("a.txt", "one###two##", {.separator = "###"}), (Strings{"one", "two##"}));
}

TEST(TextSource, JsonLinesGiveTheirField) {
  EXPECT_EQ(
      documents_of("a.jsonl", "{\"text\": \"one\\n\"}\r\n\n {\"x\":1,\"text\":\"\"}\n{\"text\":\"two\"}"),
      (Strings{"one\n", "two"}));
  EXPECT_EQ(documents_of("a.ndjson", R"({"body":"one","text":3})", {.field = "body"}), (Strings{"one"}));
}

TEST(TextSource, BadLinesAreNamed) {
  const std::string good = "{\"text\":\"x\"}\n\n";
  const auto expect = [&](const std::string& line, const std::string& reason) {
    const std::string error = error_of(good + line + "\n");
    EXPECT_NE(error.find("a.jsonl:3: " + reason), std::string::npos) << error;
  };
  expect("{\"text\":", "not valid JSON");
  expect("{\"text\":\"\xff\"}", "not valid JSON");
  expect("[1]", "expected an object with the member 'text', found array");
  expect("{\"texts\":\"x\"}", "the member 'text' is missing");
  expect("{\"text\":1}", "'text': expected text, found number");
}

TEST(TextSource, FilesFollowEachOther) {
  const ScratchFolder folder;
  write_atomically(folder.file("a.txt"), "one");
  write_atomically(folder.file("b.jsonl"), "{\"text\":\"two\"}\n{\"text\":\"three\"}\n");
  write_atomically(folder.file("c.txt"), "");
  const auto source = open_texts({folder.file("a.txt"), folder.file("b.jsonl"), folder.file("c.txt")});
  EXPECT_EQ(all_of(*source), (Strings{"one", "two", "three"}));
  EXPECT_THROW(open_texts({folder.file("none")}), InputError);
  EXPECT_THROW(open_texts({}), InputError);
  EXPECT_THROW(open_text(folder.path()), InputError);
}

}  // namespace
}  // namespace weft
