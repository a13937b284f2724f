#include "io/tokenizers/protobuf.h"

#include <bit>
#include <cstring>

#include "base/error.h"
#include "io/tokenizers/utf8.h"

namespace weft {

uint64_t ProtoReader::varint() {
  uint64_t value = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    require(at_ < in_.size(), "{}: ends within a number at byte {}", where_, at_);
    const auto byte = static_cast<unsigned char>(in_[at_++]);
    value |= static_cast<uint64_t>(byte & 0x7F) << shift;
    if (byte < 0x80) return value;
  }
  throw InputError(fmt::format("{}: the number before byte {} is longer than 64 bits", where_, at_));
}

uint64_t ProtoReader::fixed(size_t bytes) {
  require(in_.size() - at_ >= bytes, "{}: ends within a number at byte {}", where_, at_);
  uint64_t value = 0;
  std::memcpy(&value, in_.data() + at_, bytes);
  at_ += bytes;
  return value;
}

bool ProtoReader::next(ProtoField& field) {
  if (at_ >= in_.size()) return false;
  const size_t begin = at_;
  const uint64_t tag = varint();
  require(tag >> 3 != 0 && tag >> 3 <= UINT32_MAX, "{}: has a field with the number {} at byte {}", where_,
          tag >> 3, begin);
  field = {.number = static_cast<uint32_t>(tag >> 3)};
  switch (tag & 7) {
    case 0:
      field.kind = ProtoField::Kind::integer;
      field.value = varint();
      return true;
    case 1:
      field.kind = ProtoField::Kind::fixed64;
      field.value = fixed(8);
      return true;
    case 2: {
      field.kind = ProtoField::Kind::bytes;
      const uint64_t size = varint();
      require(size <= in_.size() - at_, "{}: field {} at byte {} has {} bytes, but only {} are left", where_,
              field.number, begin, size, in_.size() - at_);
      field.bytes = in_.substr(at_, size);
      at_ += size;
      return true;
    }
    case 5:
      field.kind = ProtoField::Kind::fixed32;
      field.value = fixed(4);
      return true;
    default:
      throw InputError(fmt::format("{}: field {} at byte {} has the unknown wire type {}", where_,
                                   field.number, begin, tag & 7));
  }
}

void ProtoReader::require_kind(const ProtoField& field, ProtoField::Kind kind, const char* name) const {
  require(field.kind == kind, "{}: {} (field {}) is of the wrong kind", where_, name, field.number);
}

int64_t ProtoReader::integer(const ProtoField& field, const char* name) const {
  require_kind(field, ProtoField::Kind::integer, name);
  return static_cast<int64_t>(field.value);
}

float ProtoReader::number(const ProtoField& field, const char* name) const {
  require_kind(field, ProtoField::Kind::fixed32, name);
  return std::bit_cast<float>(static_cast<uint32_t>(field.value));
}

std::string_view ProtoReader::bytes(const ProtoField& field, const char* name) const {
  require_kind(field, ProtoField::Kind::bytes, name);
  return field.bytes;
}

std::string ProtoReader::text(const ProtoField& field, const char* name) const {
  require_kind(field, ProtoField::Kind::bytes, name);
  require(is_utf8(field.bytes), "{}: {} (field {}) is not UTF-8", where_, name, field.number);
  return std::string(field.bytes);
}

void ProtoWriter::varint(uint64_t value) {
  for (; value >= 0x80; value >>= 7) out_ += static_cast<char>(value | 0x80);
  out_ += static_cast<char>(value);
}

void ProtoWriter::integer(uint32_t number, uint64_t value) {
  varint(number << 3);
  varint(value);
}

void ProtoWriter::number(uint32_t number, float value) {
  varint(number << 3 | 5);
  out_.append(reinterpret_cast<const char*>(&value), sizeof value);
}

void ProtoWriter::bytes(uint32_t number, std::string_view value) {
  varint(number << 3 | 2);
  varint(value.size());
  out_ += value;
}

}  // namespace weft
