#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <limits>

#include "base/crc32c.h"
#include "base/error.h"
#include "base/files.h"
#include "base/scratch_folder.h"
#include "train/log/json_log.h"
#include "train/log/tensorboard.h"

namespace weft {
namespace {

TEST(JsonLog, NumbersReadBackToTheSameBits) {
  ScratchFolder folder;
  const auto path = folder.file("log.jsonl");
  const double loss = 2.0 / 3.0 + 1e-16;
  {
    JsonLog log(path, 0);
    log.append({1, {{"loss", loss}, {"lr", 1e-5}, {"skipped", std::numeric_limits<double>::quiet_NaN()}}});
    log.append({2, {{"loss", 3}}});
  }
  const auto lines = read_json_log(path);
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0].value("loss", 0), loss);
  EXPECT_EQ(lines[0].value("skipped", -1), -1);
  EXPECT_EQ(lines[1].step, 2);
}

TEST(JsonLog, DropsLinesBeyondTheStepAndAnUnfinishedOne) {
  ScratchFolder folder;
  const auto path = folder.file("log.jsonl");
  write_atomically(path,
                   std::string_view("{\"step\":1,\"loss\":3}\n{\"step\":2,\"loss\":2}\n{\"step\":3,\"lo"));
  JsonLog(path, 9).append({3, {{"loss", 1}}});
  EXPECT_EQ(read_text(path), "{\"step\":1,\"loss\":3}\n{\"step\":2,\"loss\":2}\n{\"step\":3,\"loss\":1}\n");
  JsonLog(path, 1).append({2, {{"loss", 5}}});
  EXPECT_EQ(read_text(path), "{\"step\":1,\"loss\":3}\n{\"step\":2,\"loss\":5}\n");
}

TEST(JsonLog, ABrokenLineInTheMiddleIsNamed) {
  ScratchFolder folder;
  const auto path = folder.file("log.jsonl");
  write_atomically(path, std::string_view("{\"step\":1}\nhello\n{\"step\":3}\n"));
  try {
    JsonLog log(path, 9);
    FAIL() << "no error";
  } catch (const InputError& error) {
    EXPECT_NE(std::string(error.what()).find("log.jsonl:2"), std::string::npos) << error.what();
  }
}

TEST(JsonLog, AFullDiskIsAnInputError) {
  ScratchFolder folder;
  const auto path = folder.file("log.jsonl");
  ASSERT_EQ(::symlink("/dev/full", path.c_str()), 0);
  JsonLog log(path, 0);
  try {
    log.append({1, {{"loss", 1}}});
    FAIL() << "no error";
  } catch (const InputError& error) {
    EXPECT_NE(std::string(error.what()).find("No space left"), std::string::npos) << error.what();
  }
}

// A small decoder of what the writer may produce.
struct Decoder {
  std::string_view text;
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
      const auto byte = static_cast<unsigned char>(text.at(0));
      text.remove_prefix(1);
      value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
  }
  template <class T>
  T take() {
    T value;
    std::memcpy(&value, text.data(), sizeof(T));
    text.remove_prefix(sizeof(T));
    return value;
  }
  std::string_view block() {
    const auto size = varint();
    const auto part = text.substr(0, size);
    text.remove_prefix(size);
    return part;
  }
};

struct Scalar {
  int64_t step = 0;
  std::string version, tag;
  float value = 0;
  bool session = false;
};

Scalar decode_event(std::string_view event) {
  Scalar scalar;
  Decoder in{event};
  while (!in.text.empty()) {
    switch (in.varint()) {
      case 1 << 3 | 1:
        EXPECT_GT(in.take<double>(), 1.6e9);
        break;
      case 2 << 3:
        scalar.step = static_cast<int64_t>(in.varint());
        break;
      case 3 << 3 | 2:
        scalar.version = in.block();
        break;
      case 7 << 3 | 2:
        scalar.session = in.block() == std::string_view("\x08\x01");
        break;
      case 5 << 3 | 2: {
        Decoder summary{in.block()};
        EXPECT_EQ(summary.varint(), 1u << 3 | 2);
        Decoder value{summary.block()};
        EXPECT_EQ(value.varint(), 1u << 3 | 2);
        scalar.tag = value.block();
        EXPECT_EQ(value.varint(), 2u << 3 | 5);
        scalar.value = value.take<float>();
        break;
      }
      default:
        ADD_FAILURE() << "unknown field";
        return scalar;
    }
  }
  return scalar;
}

TEST(EventFile, RecordsDecodeToWhatWasWritten) {
  ScratchFolder folder;
  std::string path;
  {
    EventFile file(folder.path(), 300);
    file.scalar("train/loss", 300, 2.5);
    file.scalar("valid/loss", 1000000, -0.125);
    path = file.path();
  }
  EXPECT_NE(path.find("/events.out.tfevents."), std::string::npos);
  const auto text = read_text(path);
  std::vector<Scalar> events;
  for (Decoder in{text}; !in.text.empty();) {
    const auto header = in.text.substr(0, 8);
    const auto size = in.take<uint64_t>();
    EXPECT_EQ(in.take<uint32_t>(), masked_crc32c(header));
    const auto body = in.text.substr(0, size);
    in.text.remove_prefix(size);
    EXPECT_EQ(in.take<uint32_t>(), masked_crc32c(body));
    events.push_back(decode_event(body));
  }
  ASSERT_EQ(events.size(), 4u);
  EXPECT_EQ(events[0].version, "brain.Event:2");
  EXPECT_TRUE(events[1].session);
  EXPECT_EQ(events[1].step, 300);
  EXPECT_EQ(events[2].tag, "train/loss");
  EXPECT_EQ(events[2].value, 2.5f);
  EXPECT_EQ(events[3].step, 1000000);
  EXPECT_EQ(events[3].value, -0.125f);
}

}  // namespace
}  // namespace weft
