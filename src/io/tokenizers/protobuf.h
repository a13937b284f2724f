// Reading and writing the wire format of Protocol Buffers, without schemas.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace weft {

struct ProtoField {
  uint32_t number = 0;
  enum class Kind { integer, fixed64, bytes, fixed32 } kind = Kind::integer;
  uint64_t value = 0;      // of an integer or fixed field
  std::string_view bytes;  // of a field of bytes, text or a message
};

// Goes through the fields of one message. Every method throws InputError, with `where` and the byte, for bytes
// that are no message and for fields of another kind than asked for.
class ProtoReader {
 public:
  ProtoReader(std::string_view message, std::string where) : in_(message), where_(std::move(where)) {}
  // False at the end.
  bool next(ProtoField& field);

  bool boolean(const ProtoField& field, const char* name) const { return integer(field, name) != 0; }
  int64_t integer(const ProtoField& field, const char* name) const;
  float number(const ProtoField& field, const char* name) const;
  std::string_view bytes(const ProtoField& field, const char* name) const;
  // As bytes, and valid UTF-8.
  std::string text(const ProtoField& field, const char* name) const;
  const std::string& where() const { return where_; }

 private:
  uint64_t varint();
  uint64_t fixed(size_t bytes);
  void require_kind(const ProtoField& field, ProtoField::Kind kind, const char* name) const;
  std::string_view in_;
  size_t at_ = 0;
  std::string where_;
};

class ProtoWriter {
 public:
  void integer(uint32_t number, uint64_t value);
  void number(uint32_t number, float value);
  void bytes(uint32_t number, std::string_view value);
  const std::string& message() const { return out_; }

 private:
  void varint(uint64_t value);
  std::string out_;
};

}  // namespace weft
