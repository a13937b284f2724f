#include "io/datasets/token_file.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

#include "base/error.h"
#include "base/scratch_folder.h"
#include "io/tokenizers/byte_tokenizer.h"

namespace weft {
namespace {

using Ids = std::vector<int64_t>;

void write_tokens(const std::string& path, int64_t vocab_size, const std::vector<Ids>& documents) {
  TokenFileWriter writer(path, vocab_size, "test-1");
  for (const auto& document : documents) writer.add(document);
  writer.finish();
}

Ids all_of(const TokenFile& file) {
  Ids ids(static_cast<size_t>(file.size()));
  file.read(0, file.size(), ids.data());
  return ids;
}

TEST(TokenFile, WhatIsWrittenIsRead) {
  const ScratchFolder folder;
  for (const int64_t vocab_size : {int64_t{300}, int64_t{65536}, int64_t{65537}, int64_t{1} << 32}) {
    const int64_t last = vocab_size - 1;
    write_tokens(folder.file("a"), vocab_size, {{1, 2, last}, {}, {0}, {5, last}});
    const TokenFile file(folder.file("a"));
    EXPECT_EQ(all_of(file), (Ids{1, 2, last, 0, 5, last}));
    EXPECT_EQ(file.documents(), 3);
    EXPECT_EQ(file.start(0), 0);
    EXPECT_EQ(file.start(2), 4);
    EXPECT_EQ(file.start(3), 6);
    EXPECT_EQ(file.first_document_from(0), 0);
    EXPECT_EQ(file.first_document_from(1), 1);
    EXPECT_EQ(file.first_document_from(4), 2);
    EXPECT_EQ(file.first_document_from(5), 3);
    EXPECT_EQ(file.vocab_size(), vocab_size);
    EXPECT_EQ(file.fingerprint(), "test-1");
  }
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1);
}

TEST(TokenFile, TokensBelow65537TakeTwoBytes) {
  const ScratchFolder folder;
  write_tokens(folder.file("a"), 65536, {Ids(1000, 1)});
  EXPECT_EQ(std::filesystem::file_size(folder.file("a")), 128u + 2000 + 8);
}

TEST(TokenFile, WritingChecksItsInput) {
  const ScratchFolder folder;
  EXPECT_THROW(write_tokens(folder.file("a"), 10, {{10}}), InputError);
  EXPECT_THROW(write_tokens(folder.file("a"), 10, {{-1}}), InputError);
  EXPECT_THROW(write_tokens(folder.file("a"), 10, {}), InputError);
  EXPECT_THROW(write_tokens(folder.file("a"), 10, {{}}), InputError);
  EXPECT_THROW(write_tokens(folder.file("a"), 0, {{0}}), InputError);
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

class DamagedTokenFile : public testing::Test {
 protected:
  void SetUp() override {
    write_tokens(folder_.file("good"), 300, {{1, 2, 3}, {4, 5}, {6}});
    good_ = read_text(folder_.file("good"));
  }
  template <class T>
  std::string with(size_t offset, T value) const {
    std::string bad = good_;
    std::memcpy(bad.data() + offset, &value, sizeof value);
    return bad;
  }
  std::string error_of(const std::string& content) const {
    std::ofstream(folder_.file("bad"), std::ios::binary) << content;
    try {
      all_of(TokenFile(folder_.file("bad")));
    } catch (const InputError& error) {
      return error.what();
    }
    return "(accepted)";
  }
  void expect(const std::string& content, const std::string& part) const {
    const std::string error = error_of(content);
    EXPECT_NE(error.find(part), std::string::npos) << error;
    EXPECT_NE(error.find(folder_.file("bad")), std::string::npos) << error;
  }
  ScratchFolder folder_;
  std::string good_;
};

TEST_F(DamagedTokenFile, IsSaidToBeSo) {
  EXPECT_EQ(error_of(good_), "(accepted)");
  expect("", "0 bytes are too few");
  expect(good_.substr(0, 127), "127 bytes are too few");
  for (size_t cut = 128; cut < good_.size(); ++cut) expect(good_.substr(0, cut), "is it truncated?");
  expect(good_ + "x", "is it damaged?");
  expect(with(0, 'X'), "is not a token file");
  expect(with(8, uint32_t{2}), "has version 2, this program reads version 1");
  expect(with(12, uint32_t{3}), "has 3 bytes an id");
  expect(with(16, uint64_t{0}), "states 0 tokens");
  expect(with(16, UINT64_MAX), "states 18446744073709551615 tokens");
  expect(with(16, uint64_t{1} << 62), "tokens, expected 1 to");
  expect(with(16, uint64_t{1} << 40), "is it truncated?");
  expect(with(24, uint64_t{0}), "states 0 documents");
  expect(with(24, uint64_t{7}), "states 7 documents of 6 tokens");
  expect(with(24, UINT64_MAX), "documents of 6 tokens");
  expect(with(32, uint64_t{0}), "states a vocabulary of 0");
  expect(with(32, uint64_t{65537}), "states a vocabulary of 65537");
  expect(with(32, uint64_t{6}), "token 5 is 6, outside the vocabulary of 6");
  const size_t starts = good_.size() - 24;
  expect(with(starts, uint64_t{1}), "the first document begins at 1, expected 0");
  expect(with(starts + 8, uint64_t{0}), "document 1 begins at 0, after one at 0");
  expect(with(starts + 16, uint64_t{6}), "document 2 begins at 6");
  expect(with(starts + 16, UINT64_MAX), "document 2 begins at 18446744073709551615");
}

TEST_F(DamagedTokenFile, RandomDamageNeverCrashes) {
  std::mt19937 random(5);
  for (int round = 0; round < 300; ++round) {
    std::string bad = good_;
    for (int flips = 1 + static_cast<int>(random() % 3); flips > 0; --flips)
      bad[random() % bad.size()] ^= static_cast<char>(1 << random() % 8);
    error_of(bad);
  }
}

TEST(BuildTokenFile, TokenizesEveryDocument) {
  const ScratchFolder folder;
  write_atomically(folder.file("a.txt"), "one\f<|endoftext|>");
  const auto source = open_text(folder.file("a.txt"), {.separator = "\f"});
  std::vector<int64_t> seen;
  const ByteTokenizer tokenizer;
  const auto done =
      build_token_file(*source, tokenizer, folder.file("a.tokens"),
                       [&](const TokenFileProgress& progress) { seen.push_back(progress.tokens); });
  EXPECT_EQ(done.documents, 2);
  EXPECT_EQ(done.tokens, 4 + 14);
  EXPECT_EQ(done.bytes_done, done.bytes_total);
  EXPECT_EQ(seen, (Ids{4, 18}));
  const TokenFile file(folder.file("a.tokens"));
  EXPECT_EQ(tokenizer.decode(all_of(file)), "one<|endoftext|>");
  EXPECT_EQ(all_of(file)[3], 256);  // after each document, and nowhere because the text says so
  EXPECT_EQ(all_of(file)[4], '<');
  EXPECT_EQ(file.start(1), 4);
  file.require_tokenizer(tokenizer);
}

TEST(BuildTokenFile, AnotherTokenizerIsNoticed) {
  const ScratchFolder folder;
  write_tokens(folder.file("a"), 257, {{1}});
  try {
    TokenFile(folder.file("a")).require_tokenizer(ByteTokenizer());
    FAIL();
  } catch (const InputError& error) {
    EXPECT_NE(std::string(error.what()).find("was made with the tokenizer test-1"), std::string::npos)
        << error.what();
  }
}

TEST(BuildTokenFile, NoTextIsAnInputError) {
  const ScratchFolder folder;
  write_atomically(folder.file("a.txt"), "");
  const auto source = open_text(folder.file("a.txt"));
  EXPECT_THROW(build_token_file(*source, ByteTokenizer(), folder.file("a.tokens")), InputError);
  EXPECT_FALSE(std::filesystem::exists(folder.file("a.tokens")));
}

}  // namespace
}  // namespace weft
