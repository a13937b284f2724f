#include "io/safetensors.h"

#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <random>

#include "base/error.h"
#include "base/scratch_folder.h"

namespace weft {
namespace {

// A whole file: header length, header, `data` bytes of zero.
std::string file_of(const std::string& header, size_t data = 0) {
  const uint64_t length = header.size();
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  return file + header + std::string(data, '\0');
}

std::string error_of(const std::string& file) {
  try {
    parse_safetensors_header(file, "w.safetensors");
  } catch (const InputError& error) {
    return error.what();
  }
  return "(accepted)";
}

void expect_error(const std::string& file, const std::string& part) {
  const std::string error = error_of(file);
  EXPECT_NE(error.find(part), std::string::npos) << error;
  EXPECT_EQ(error.find("w.safetensors"), 0u) << error;
}

std::string tensor(const std::string& name, const std::string& dtype, const std::string& shape,
                   const std::string& offsets) {
  return "\"" + name + R"(":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets +
         "}";
}

NamedTensors every_dtype() {
  NamedTensors tensors;
  for (const auto dtype : {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16, at::kLong, at::kInt, at::kShort,
                           at::kChar, at::kByte, at::kBool, at::kUInt16, at::kUInt32, at::kUInt64,
                           at::kFloat8_e4m3fn, at::kFloat8_e5m2, at::kComplexFloat})
    tensors.emplace_back(c10::toString(dtype), at::arange(2, at::kFloat).repeat({3, 1}).to(dtype));
  tensors.emplace_back("scalar", at::full({}, 2.5));
  tensors.emplace_back("empty", at::empty({3, 0, 2}));
  tensors.emplace_back("transposed", at::arange(6).reshape({2, 3}).t());
  return tensors;
}

void expect_same(const at::Tensor& a, const at::Tensor& b) {
  EXPECT_EQ(a.scalar_type(), b.scalar_type());
  ASSERT_EQ(a.sizes(), b.sizes());
  const at::Tensor x = a.contiguous(), y = b.contiguous();
  EXPECT_EQ(x.numel() == 0 || std::memcmp(x.data_ptr(), y.data_ptr(), x.nbytes()) == 0, true);
}

TEST(SafeTensors, WhatIsWrittenIsRead) {
  const ScratchFolder folder;
  const std::string path = folder.file("w.safetensors");
  const Metadata metadata = {{"format", "pt"}, {"step", "12"}};
  write_safetensors(path, every_dtype(), metadata);
  const SafeTensors file(path);
  EXPECT_EQ(file.metadata(), metadata);
  EXPECT_EQ(file.entries().size(), every_dtype().size());
  for (const auto& [name, original] : every_dtype()) {
    expect_same(file.view(name), original);
    expect_same(file.load(name), original);
    if (original.numel() > 0) {  // the writer's order aligns everything, so that views need no copy
      const TensorEntry& entry = file.entry(name);
      EXPECT_EQ(entry.begin % c10::elementSize(entry.dtype), 0u) << name;
      EXPECT_EQ(file.view(name).data_ptr(), file.view(name).data_ptr()) << name;
    }
  }
}

TEST(SafeTensors, AViewKeepsTheMappingAlive) {
  const ScratchFolder folder;
  const std::string path = folder.file("w.safetensors");
  write_safetensors(path, {{"a", at::arange(1000)}});
  at::Tensor view;
  { view = SafeTensors(path).view("a"); }
  EXPECT_EQ(view.sum().item<int64_t>(), 499500);
}

TEST(SafeTensors, MisalignedBytesAreCopied) {
  const ScratchFolder folder;
  const std::string path = folder.file("w.safetensors");
  std::string header =
      "{" + tensor("a", "U8", "[1]", "[0,1]") + "," + tensor("b", "F32", "[1]", "[1,5]") + "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  std::string file = file_of(header, 5);
  const float value = 1.5;
  std::memcpy(file.data() + file.size() - 4, &value, 4);
  write_atomically(path, file);
  EXPECT_EQ(SafeTensors(path).view("b").item<float>(), 1.5);
}

TEST(SafeTensors, TheHeaderIsPaddedToEightBytes) {
  const ScratchFolder folder;
  write_safetensors(folder.file("w"), {{"abc", at::zeros({1})}});
  uint64_t length;
  std::memcpy(&length, read_text(folder.file("w")).data(), 8);
  EXPECT_EQ(length % 8, 0u);
}

TEST(SafeTensors, AFileWithoutTensorsIsFine) {
  const ScratchFolder folder;
  write_safetensors(folder.file("w"), {});
  EXPECT_TRUE(SafeTensors(folder.file("w")).names().empty());
}

TEST(SafeTensors, TruncationIsSaid) {
  expect_error("", "0 bytes are too few");
  expect_error("1234567", "7 bytes are too few");
  expect_error(file_of("{}").substr(0, 9), "the file ends after 1");
  const std::string whole = file_of("{" + tensor("a", "F32", "[2]", "[0,8]") + "}", 8);
  EXPECT_EQ(error_of(whole), "(accepted)");
  for (size_t cut = 0; cut < whole.size(); ++cut)
    EXPECT_NE(error_of(whole.substr(0, cut)), "(accepted)") << cut;
  expect_error(whole.substr(0, whole.size() - 1), "tensor 'a': bytes 0 to 8 are outside the 7 bytes");
}

TEST(SafeTensors, LyingLengthsAreSaid) {
  std::string file = file_of("{}");
  for (const uint64_t length : {uint64_t{100'000'001}, UINT64_MAX, UINT64_MAX - 7}) {
    std::memcpy(file.data(), &length, 8);
    expect_error(file, "at most 100000000 are allowed");
  }
}

TEST(SafeTensors, BrokenHeadersAreSaid) {
  expect_error(file_of(""), "does not begin with '{'");
  expect_error(file_of(" {}"), "does not begin with '{'");
  expect_error(file_of("[]"), "does not begin with '{'");
  expect_error(file_of("{\"a\":"), "not valid JSON");
  expect_error(file_of("{}x"), "not valid JSON");
  expect_error(file_of("{\"\xff\":{}}"), "not valid JSON");
  expect_error(file_of("{\"a\":1}"), "the number 1 cannot stand here");
  expect_error(file_of("{\"a\":[]}"), "a list cannot stand here");
  expect_error(file_of("{\"a\":{\"b\":{}}}"), "unknown member 'b'");
  expect_error(file_of("{\"a\":{}}"), "tensor 'a': dtype, shape and data_offsets are needed");
  expect_error(file_of("{\"__metadata__\":{\"a\":1}}"), "the number 1 cannot stand here");
  expect_error(file_of("{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}}"), "has 'a' twice");
  const std::string one = tensor("a", "F32", "[]", "[0,4]");
  expect_error(file_of("{" + one + "," + one + "}", 4), "tensor 'a' is in the header twice");
  expect_error(file_of(R"({"a":{"dtype":"F32","dtype":"F32"}})"), "'dtype' is given twice");
  expect_error(file_of("{" + std::string(100'000, '[')), "not valid JSON");
  expect_error(file_of("{\"a\":{\"shape\":" + std::string(100'000, '[')), "a list cannot stand here");
}

TEST(SafeTensors, LyingTensorsAreSaid) {
  const auto one = [](const std::string& dtype, const std::string& shape, const std::string& offsets,
                      size_t data) { return file_of("{" + tensor("a", dtype, shape, offsets) + "}", data); };
  expect_error(one("F31", "[1]", "[0,4]", 4), "tensor 'a': unknown dtype 'F31'; known are F64, F32");
  expect_error(one("F32", "[-1]", "[0,4]", 4), "'a': shape: the number -1 cannot stand here");
  expect_error(one("F32", "[1.5]", "[0,4]", 4), "'a': shape: the number 1.5 cannot stand here");
  expect_error(one("F32", "[\"1\"]", "[0,4]", 4), "cannot stand here");
  expect_error(one("F32", "[2]", "[0,4]", 4), "F32 [2] needs 8 bytes, data_offsets give 4");
  expect_error(one("F32", "[1]", "[4,0]", 4), "bytes 4 to 0 are outside");
  expect_error(one("F32", "[1]", "[0]", 4), "data_offsets must be [begin, end], found 1");
  expect_error(one("F32", "[1]", "[0,4,8]", 4), "found 3");
  expect_error(one("F32", "[4294967296,4294967296]", "[0,4]", 4), "too large");
  expect_error(one("F32", "[9223372036854775808,0]", "[0,0]", 0), "too large");
  expect_error(one("F32", "[0,4611686018427387904,8]", "[0,0]", 0), "too large");
  expect_error(one("F32", "[18446744073709551615]", "[0,4]", 4), "too large");
  expect_error(one("F32", "[18446744073709551616]", "[0,4]", 4), "cannot stand here");
  expect_error(one("F32", "[1]", "[0,18446744073709551615]", 4), "outside the 4 bytes");
}

TEST(SafeTensors, OverlapsAndHolesAreSaid) {
  const auto two = [](const std::string& first, const std::string& second, size_t data) {
    return file_of("{" + tensor("a", "F32", "[1]", first) + "," + tensor("b", "F32", "[1]", second) + "}",
                   data);
  };
  EXPECT_EQ(error_of(two("[4,8]", "[0,4]", 8)), "(accepted)");
  expect_error(two("[0,4]", "[0,4]", 4), "tensor 'b' overlaps tensor 'a'");
  expect_error(two("[0,4]", "[2,6]", 6), "tensor 'b' overlaps tensor 'a'");
  expect_error(two("[0,4]", "[6,10]", 10), "tensor 'b': a hole of 2 bytes lies before it, after a");
  expect_error(two("[2,6]", "[6,10]", 10), "tensor 'a': a hole of 2 bytes lies before it, after the header");
  expect_error(two("[0,4]", "[4,8]", 9), "1 bytes after the last tensor belong to none");
}

TEST(SafeTensors, BoolsAreZeroOrOne) {
  const ScratchFolder folder;
  std::string file = file_of("{" + tensor("a", "BOOL", "[2]", "[0,2]") + "}", 2);
  file.back() = 2;
  write_atomically(folder.file("w"), file);
  EXPECT_THROW(SafeTensors(folder.file("w")).load("a"), InputError);
  EXPECT_THROW(SafeTensors(folder.file("w")).view("a"), InputError);
}

TEST(SafeTensors, AnAbsentTensorNamesTheNearest) {
  const ScratchFolder folder;
  write_safetensors(folder.file("w"), {{"layers.0.weight", at::zeros({1})}});
  try {
    SafeTensors(folder.file("w")).view("layers.0.weigth");
    FAIL();
  } catch (const InputError& error) {
    EXPECT_NE(std::string(error.what()).find("nearest is 'layers.0.weight'"), std::string::npos)
        << error.what();
  }
}

TEST(SafeTensors, WritingChecksItsInput) {
  const ScratchFolder folder;
  const at::Tensor x = at::zeros({1});
  EXPECT_THROW(write_safetensors(folder.file("w"), {{"a", x}, {"a", x}}), InputError);
  EXPECT_THROW(write_safetensors(folder.file("w"), {{"__metadata__", x}}), InputError);
  EXPECT_THROW(write_safetensors(folder.file("w"), {{"a", at::Tensor()}}), InputError);
  EXPECT_THROW(write_safetensors(folder.file("w"), {{"\xff", x}}), InputError);
  EXPECT_THROW(write_safetensors(folder.file("w"), {{"a", x.to(at::kComplexDouble)}}), Unsupported);
  EXPECT_THROW(write_safetensors(folder.file("none/w"), {{"a", x}}), InputError);
}

// Two shards "a" and "b" in their files and the index `weight_map`.
void write_shards(const ScratchFolder& folder, const std::string& weight_map) {
  write_safetensors(folder.file("model-1.safetensors"), {{"a", at::zeros({1})}});
  write_safetensors(folder.file("model-2.safetensors"), {{"b", at::ones({2})}});
  write_atomically(folder.file("model.safetensors.index.json"),
                   "{\"metadata\":{},\"weight_map\":" + weight_map + "}");
}

std::string shards_error(const std::string& weight_map) {
  const ScratchFolder folder;
  write_shards(folder, weight_map);
  try {
    const SafeTensors shards{folder.path()};
  } catch (const InputError& error) {
    return error.what();
  }
  return "(accepted)";
}

TEST(SafeTensors, ShardsAreOneSet) {
  const ScratchFolder folder;
  write_shards(folder, R"({"a":"model-1.safetensors","b":"model-2.safetensors"})");
  for (const std::string& path : {folder.path(), folder.file("model.safetensors.index.json")}) {
    const SafeTensors file(path);
    EXPECT_EQ(file.names(), (std::vector<std::string>{"a", "b"}));
    EXPECT_EQ(file.load("b").sum().item<float>(), 2);
    EXPECT_EQ(file.files().size(), 2u);
  }
}

TEST(SafeTensors, LyingIndexesAreSaid) {
  const auto expect = [](const std::string& map, const std::string& part) {
    EXPECT_NE(shards_error(map).find(part), std::string::npos) << shards_error(map);
  };
  expect(R"({"a":"model-1.safetensors","b":"model-1.safetensors"})",
         "tensor 'b' is not in model-1.safetensors");
  expect(R"({"a":"model-1.safetensors","b":"model-2.safetensors","c":"model-2.safetensors"})",
         "tensor 'c' is not in");
  expect(R"({"a":"model-3.safetensors"})", "model-3.safetensors: cannot open");
  expect(R"({"a":"../model-1.safetensors"})", "not the name of a file beside the index");
  expect(R"({"a":1})", "weight_map.a: expected text, found 1");
  expect("[]", "expected an object");
  expect("[", "not valid JSON");
}

TEST(SafeTensors, AnEmptyFolderIsSaid) {
  const ScratchFolder folder;
  EXPECT_THROW(SafeTensors{folder.path()}, InputError);
  EXPECT_THROW(SafeTensors{folder.file("none")}, InputError);
}

// Random damage must be found or be harmless: it never crashes and never yields a range outside the file.
TEST(SafeTensors, RandomDamageNeverCrashes) {
  const ScratchFolder folder;
  write_safetensors(folder.file("w"), every_dtype(), {{"format", "pt"}});
  const std::string good = read_text(folder.file("w"));
  uint64_t length;
  std::memcpy(&length, good.data(), 8);
  std::mt19937 random(7);
  const auto below = [&](size_t n) { return static_cast<size_t>(random()) % n; };
  int accepted = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::string bad = good;
    for (size_t flips = 1 + below(3); flips > 0; --flips)
      bad[below(8 + length)] ^= static_cast<char>(1 << below(8));
    if (below(8) == 0) bad.resize(below(bad.size()));
    try {
      for (const auto& [name, entry] : parse_safetensors_header(bad, "w").entries)
        ASSERT_LE(entry.begin + entry.bytes, bad.size()) << name;
      ++accepted;
    } catch (const InputError&) {
    }
  }
  EXPECT_LT(accepted, 10'000);  // flips inside names and metadata are no damage
}

}  // namespace
}  // namespace weft
