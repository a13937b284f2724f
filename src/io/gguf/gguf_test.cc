// The file format: values, tensor types against gguf-py and against the definition, hostile files, writing.
#include "io/gguf/gguf.h"

#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "base/error.h"
#include "base/scratch_folder.h"

namespace weft {
namespace {

const char* const kTypesFile = "tests/data/gguf/types.gguf";

// Little-endian bytes of a header, for files that no writer would make.
class Bytes {
 public:
  template <class T>
  Bytes& put(T value) {
    data_.append(reinterpret_cast<const char*>(&value), sizeof(T));
    return *this;
  }
  Bytes& u32(uint32_t value) { return put(value); }
  Bytes& u64(uint64_t value) { return put(value); }
  Bytes& text(const std::string& value) {
    u64(value.size());
    data_ += value;
    return *this;
  }
  Bytes& begin(uint64_t tensors, uint64_t values, uint32_t version = 3) {
    data_ += "GGUF";
    return u32(version).u64(tensors).u64(values);
  }
  Bytes& tensor(const std::string& name, const std::vector<uint64_t>& sizes, GgmlType type, uint64_t offset) {
    text(name).u32(static_cast<uint32_t>(sizes.size()));
    for (const auto size : sizes) u64(size);
    return u32(static_cast<uint32_t>(type)).u64(offset);
  }
  Bytes& zeros(size_t count) {
    data_.append(count, '\0');
    return *this;
  }
  Bytes& aligned(size_t alignment = 32) { return zeros((alignment - data_.size() % alignment) % alignment); }
  const std::string& data() const { return data_; }

 private:
  std::string data_;
};

void expect_refused(const std::string& file, const std::string& message) {
  try {
    parse_gguf(file, "bad.gguf");
    ADD_FAILURE() << "accepted; expected: " << message;
  } catch (const InputError& error) {
    EXPECT_NE(std::string(error.what()).find(message), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("bad.gguf"), std::string::npos) << error.what();
  }
}

TEST(Gguf, ValuesOfEveryKind) {
  const GgufFile file(kTypesFile);
  const auto& values = file.metadata();
  EXPECT_EQ(values.architecture(), "test");
  EXPECT_EQ(values.integer("test.u8"), 200);
  EXPECT_EQ(values.integer(".i8"), -100);
  EXPECT_EQ(values.integer("test.u16"), 60000);
  EXPECT_EQ(values.integer("test.i16"), -30000);
  EXPECT_EQ(values.integer("test.u32"), 4000000000);
  EXPECT_EQ(values.integer("test.i32"), -2000000000);
  EXPECT_EQ(values.integer("test.i64"), -(int64_t{1} << 62));
  EXPECT_EQ(std::get<uint64_t>(values.find("test.u64")->value), (uint64_t{1} << 63) + 1);
  EXPECT_THROW(values.integer("test.u64"), InputError);
  EXPECT_EQ(values.number("test.f32"), 1e-5);
  EXPECT_EQ(values.number("test.f64"), 1e-300);
  EXPECT_TRUE(values.flag("test.bool", false));
  EXPECT_EQ(values.text("test.string"), "größer");
  EXPECT_EQ(values.texts("test.strings"), (std::vector<std::string>{"a", "", "c d"}));
  EXPECT_EQ(values.integers("test.ints"), (std::vector<int64_t>{1, -2, 3}));
  EXPECT_EQ(values.numbers("test.floats"), (std::vector<double>{0.5, 0.1}));
  const auto& nested = std::get<std::vector<GgufValue>>(values.find("test.nested")->value);
  ASSERT_EQ(nested.size(), 2u);
  EXPECT_EQ(std::get<std::vector<int64_t>>(nested[0].value), (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(std::get<std::vector<int64_t>>(nested[1].value), (std::vector<int64_t>{3}));
  EXPECT_THROW(values.text("test.u8"), InputError);
  EXPECT_THROW(values.integer("test.absent"), InputError);
}

// gguf-py computed what the blocks mean: equal bit for bit.
TEST(Gguf, TypesAreExpandedAsByGgufPy) {
  const GgufFile file(kTypesFile);
  int compared = 0;
  for (const auto& [name, tensor] : file.tensors()) {
    if (!file.contains(name + ".expected")) continue;
    const auto ours = file.view(name).to(at::kFloat), theirs = file.view(name + ".expected");
    EXPECT_TRUE(ours.equal(theirs)) << name << ": " << (ours - theirs).abs().max();
    ++compared;
  }
  EXPECT_EQ(compared, 16);
}

TEST(Gguf, PlainTypes) {
  const GgufFile file(kTypesFile);
  const auto plain = file.view("F32");
  EXPECT_EQ(file.view("F16").scalar_type(), at::kHalf);
  EXPECT_TRUE(file.view("F16").equal(plain.to(at::kHalf)));
  EXPECT_TRUE(file.view("BF16").equal(plain.to(at::kBFloat16)));
  EXPECT_TRUE(file.view("F64").equal(plain.to(at::kDouble)));
  const auto whole = at::tensor({-3, 0, 5, 7, -128, 127}, at::kLong).reshape({2, 3});
  for (const auto& [name, type] :
       {std::pair{"I8", at::kChar}, {"I16", at::kShort}, {"I32", at::kInt}, {"I64", at::kLong}})
    EXPECT_TRUE(file.view(name).equal(whole.to(type))) << name;
}

// The definition, computed here in another way: a block of chosen numbers is packed bit by bit.
TEST(Gguf, BlocksMeanWhatTheFormatSays) {
  const auto half = [](float value) { return at::Half(value).x; };
  std::vector<int> q(256);
  for (int i = 0; i < 256; ++i) q[static_cast<size_t>(i)] = (i * 7 + i / 32 * 3) % 64;
  float out[256];

  std::string q4(18, '\0');
  const uint16_t quarter = half(0.25f);
  std::memcpy(q4.data(), &quarter, 2);
  for (size_t j = 0; j < 16; ++j) q4[2 + j] = static_cast<char>((q[j] & 15) | (q[j + 16] & 15) << 4);
  ggml_blocks::q4_0(reinterpret_cast<const uint8_t*>(q4.data()), out);
  for (size_t j = 0; j < 32; ++j) EXPECT_EQ(out[j], 0.25f * static_cast<float>((q[j] & 15) - 8));

  // Q6_K: number i of half h, quarter p: low nibble of byte h * 64 + p % 2 * 32 + i (upper one for p > 1), bits 2 p of
  // byte h * 32 + i; scale every 16 numbers.
  std::vector<uint8_t> q6(210, 0);
  for (size_t i = 0; i < 256; ++i) {
    const size_t h = i / 128, p = i % 128 / 32, j = i % 32;
    q6[h * 64 + p % 2 * 32 + j] |= static_cast<uint8_t>((q[i] & 15) << (p / 2 * 4));
    q6[128 + h * 32 + j] |= static_cast<uint8_t>((q[i] >> 4) << (2 * p));
  }
  for (size_t g = 0; g < 16; ++g)
    q6[192 + g] = static_cast<uint8_t>(static_cast<int8_t>(static_cast<int>(g) - 8));
  const uint16_t eighth = half(0.125f);
  std::memcpy(q6.data() + 208, &eighth, 2);
  ggml_blocks::q6_k(q6.data(), out);
  for (int i = 0; i < 256; ++i)
    EXPECT_EQ(out[i],
              0.125f * static_cast<float>(i / 16 - 8) * static_cast<float>(q[static_cast<size_t>(i)] - 32))
        << i;
}

// Q4_K: eight 6-bit scales and minima, packed into 12 bytes.
TEST(Gguf, PackedScalesOfQ4K) {
  std::vector<uint8_t> block(144, 0);
  const uint16_t one = at::Half(1.0f).x;
  std::memcpy(block.data(), &one, 2);
  std::memcpy(block.data() + 2, &one, 2);
  const int scales[8] = {63, 1, 32, 17, 48, 15, 16, 62}, minima[8] = {0, 63, 5, 33, 31, 47, 1, 60};
  uint8_t* packed = block.data() + 4;
  for (int j = 0; j < 4; ++j) {
    packed[j] = static_cast<uint8_t>(scales[j] | (scales[j + 4] >> 4) << 6);
    packed[j + 4] = static_cast<uint8_t>(minima[j] | (minima[j + 4] >> 4) << 6);
    packed[j + 8] = static_cast<uint8_t>((scales[j + 4] & 15) | (minima[j + 4] & 15) << 4);
  }
  for (int j = 0; j < 128; ++j) block[static_cast<size_t>(16 + j)] = 0x31;  // low nibbles 1, high nibbles 3
  float out[256];
  ggml_blocks::q4_k(block.data(), out);
  for (int i = 0; i < 256; ++i)
    EXPECT_EQ(out[i], static_cast<float>(scales[i / 32] * (i / 32 % 2 ? 3 : 1) - minima[i / 32])) << i;
}

TEST(Gguf, QuantizesAsGgufPy) {
  const GgufFile file(kTypesFile);
  const auto source = file.view("q8_0.source");
  const ScratchFolder scratch;
  const auto path = scratch.path() + "/q.gguf";
  GgufMetadata metadata(path);
  metadata.set_text("general.architecture", "test");
  write_gguf(path, metadata, {{"q", source.sizes().vec(), GgmlType::Q8_0, [&] { return source; }}});
  EXPECT_TRUE(GgufFile(path).view("q").equal(file.view("q8_0.quantized")));
}

TEST(Gguf, WritesWhatItReads) {
  const GgufFile file(kTypesFile);
  const ScratchFolder scratch;
  const auto path = scratch.path() + "/copy.gguf";
  std::vector<GgufOutput> outputs;
  for (const auto& [name, tensor] : file.tensors())
    if (ggml_type_info(tensor.type).plain())
      outputs.push_back({name, tensor.shape, tensor.type, [&file, name = name] { return file.view(name); }});
  write_gguf(path, file.metadata(), outputs);
  const GgufFile copy(path);
  ASSERT_EQ(copy.metadata().items().size(), file.metadata().items().size());
  for (size_t i = 0; i < copy.metadata().items().size(); ++i) {
    const auto& [key, value] = file.metadata().items()[i];
    EXPECT_EQ(copy.metadata().items()[i].first, key);
    EXPECT_EQ(copy.metadata().items()[i].second.kind, value.kind) << key;
    EXPECT_EQ(copy.metadata().items()[i].second.value.index(), value.value.index()) << key;
  }
  EXPECT_EQ(copy.metadata().number("test.f32"), 1e-5);
  EXPECT_EQ(std::get<uint64_t>(copy.metadata().find("test.u64")->value), (uint64_t{1} << 63) + 1);
  EXPECT_EQ(copy.tensors().size(), outputs.size());
  for (const auto& output : outputs)
    EXPECT_TRUE(copy.view(output.name).equal(file.view(output.name))) << output.name;
}

TEST(Gguf, WritingRefuses) {
  const ScratchFolder scratch;
  const auto path = scratch.path() + "/no.gguf";
  const GgufMetadata metadata(path);
  const auto make = [] { return at::zeros({2, 32}); };
  EXPECT_THROW(
      write_gguf(path, metadata, {{"a", {2, 32}, GgmlType::F32, make}, {"a", {2, 32}, GgmlType::F32, make}}),
      InputError);
  EXPECT_THROW(write_gguf(path, metadata, {{"a", {2, 31}, GgmlType::Q8_0, make}}), InputError);
  EXPECT_THROW(write_gguf(path, metadata, {{"a", {2, 32}, GgmlType::Q4_K, make}}), Unsupported);
  EXPECT_THROW(write_gguf(path, metadata, {{"a", {4, 16}, GgmlType::F32, make}}), InputError);
  EXPECT_FALSE(is_gguf_file(path));
}

TEST(GgufHostile, Headers) {
  expect_refused("", "too few");
  expect_refused(std::string(64, 'x'), "does not begin");
  expect_refused(Bytes().begin(0, 0, 1).zeros(8).data(), "version 1");
  expect_refused(Bytes().begin(0, 0, 4).zeros(8).data(), "version 4");
  expect_refused(Bytes().begin(0, 0, 0x03000000).zeros(8).data(), "big-endian");
  expect_refused(Bytes().begin(0, std::numeric_limits<uint64_t>::max()).zeros(8).data(), "values cannot");
  expect_refused(Bytes().begin(std::numeric_limits<uint64_t>::max(), 0).zeros(8).data(), "tensors cannot");
  expect_refused(Bytes().begin(0, 1).u64(1u << 30).zeros(16).data(), "a string of");
  expect_refused(Bytes().begin(0, 1).text("k").u32(4).zeros(2).data(), "ends at byte");
}

TEST(GgufHostile, Values) {
  expect_refused(Bytes().begin(0, 1).text("k").u32(13).u64(0).data(), "unknown kind of value 13");
  expect_refused(Bytes().begin(0, 1).text("").u32(4).u32(1).zeros(8).data(), "is empty");
  expect_refused(Bytes().begin(0, 1).text("\xff").u32(4).u32(1).data(), "UTF-8");
  expect_refused(Bytes().begin(0, 1).text("k").u32(7).put<uint8_t>(2).data(), "a bool is 0 or 1");
  expect_refused(Bytes().begin(0, 2).text("k").u32(4).u32(1).text("k").u32(4).u32(1).data(), "given twice");
  expect_refused(Bytes().begin(0, 1).text("k").u32(8).u64(~0ull).data(), "a string of");
  expect_refused(Bytes().begin(0, 1).text("k").u32(9).u32(4).u64(~0ull).data(), "items cannot");
  expect_refused(Bytes().begin(0, 1).text("k").u32(9).u32(8).u64(1ull << 40).data(), "items cannot");
  expect_refused(Bytes().begin(0, 1).text("k").u32(9).u32(77).u64(0).data(), "unknown kind");
  Bytes deep;
  deep.begin(0, 1).text("k").u32(9);
  for (int i = 0; i < 20; ++i) deep.u32(9).u64(1);
  expect_refused(deep.u32(4).u64(0).data(), "nested");
  expect_refused(Bytes().begin(0, 1).text("general.alignment").u32(4).u32(24).data(), "power of two");
  expect_refused(Bytes().begin(0, 1).text("general.alignment").u32(4).u32(0).data(), "power of two");
  expect_refused(Bytes().begin(0, 1).text("general.alignment").u32(8).text("x").data(),
                 "expected an integer");
}

TEST(GgufHostile, Tensors) {
  const auto f32 = GgmlType::F32;
  const auto one = [](const std::vector<uint64_t>& sizes, GgmlType type, uint64_t offset, size_t data = 256) {
    return Bytes().begin(1, 0).tensor("t", sizes, type, offset).aligned().zeros(data).data();
  };
  EXPECT_EQ(parse_gguf(one({8, 4}, f32, 0), "good.gguf").tensors.at("t").shape, (std::vector<int64_t>{4, 8}));
  expect_refused(one({}, f32, 0), "0 dimensions");
  expect_refused(one({1, 1, 1, 1, 1}, f32, 0), "5 dimensions");
  expect_refused(one({0, 4}, f32, 0), "is 0");
  expect_refused(one({1ull << 40, 1ull << 40}, f32, 0), "too large");
  expect_refused(one({~0ull}, f32, 0), "too large");
  expect_refused(one({8}, static_cast<GgmlType>(5), 0), "unknown type 5");
  expect_refused(one({8}, static_cast<GgmlType>(4000000000u), 0), "unknown type");
  expect_refused(one({33}, GgmlType::Q4_0, 0), "whole blocks");
  expect_refused(one({8}, f32, 4), "no multiple of the alignment");
  expect_refused(one({65}, f32, 0), "outside");
  expect_refused(one({8}, f32, 1ull << 62), "outside");
  expect_refused(one({8}, f32, 0, 0), "outside");
  expect_refused(
      Bytes().begin(2, 0).tensor("t", {8}, f32, 0).tensor("t", {8}, f32, 32).aligned().zeros(256).data(),
      "twice");
  expect_refused(
      Bytes().begin(2, 0).tensor("a", {16}, f32, 0).tensor("b", {8}, f32, 32).aligned().zeros(256).data(),
      "overlaps");
  expect_refused(Bytes().begin(1, 0).tensor(std::string("a\0b", 3), {8}, f32, 0).aligned().zeros(256).data(),
                 "UTF-8");
}

// Every way of cutting a file short is refused, without reading beyond its end.
TEST(GgufHostile, TruncatedAnywhere) {
  const auto whole = read_text(kTypesFile);
  for (size_t size = 0; size < whole.size(); size += size < 4000 ? 13 : 1009)
    EXPECT_THROW(parse_gguf(std::string(whole.data(), size), "cut.gguf"), InputError) << size;
}

TEST(GgufHostile, TypesWithoutNumbersAreNamed) {
  const ScratchFolder scratch;
  const auto path = scratch.path() + "/iq.gguf";
  write_atomically(path,
                   Bytes().begin(1, 0).tensor("t", {256}, GgmlType::IQ2_XXS, 0).aligned().zeros(128).data());
  EXPECT_THROW(GgufFile(path).view("t"), Unsupported);
  EXPECT_THROW(GgufFile(path).view("u"), InputError);
}

TEST(Gguf, PartsOfASplitFile) {
  const ScratchFolder scratch;
  for (int part = 0; part < 2; ++part) {
    const auto path = fmt::format("{}/m-{:05}-of-00002.gguf", scratch.path(), part + 1);
    GgufMetadata metadata(path);
    metadata.set_u32("split.count", 2);
    metadata.set_u32("split.no", part);
    write_gguf(path, metadata,
               {{fmt::format("t{}", part), {3}, GgmlType::F32, [part] { return at::full({3}, part); }}});
  }
  const GgufFile file(scratch.path() + "/m-00001-of-00002.gguf");
  EXPECT_EQ(file.tensors().size(), 2u);
  EXPECT_EQ(file.view("t1").sum().item<float>(), 3);
  EXPECT_THROW(GgufFile(scratch.path() + "/m-00002-of-00002.gguf"), InputError);
}

}  // namespace
}  // namespace weft
