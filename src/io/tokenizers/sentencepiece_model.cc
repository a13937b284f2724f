#include "io/tokenizers/sentencepiece_model.h"

#include <cmath>
#include <unordered_set>

#include "base/error.h"
#include "io/tokenizers/protobuf.h"
#include "io/tokenizers/token_model.h"

namespace weft {

namespace {

using ModelPiece = SentencePieceModel::Piece;
using Type = SentencePieceModel::Type;

// Field numbers of sentencepiece_model.proto.
enum FileField : uint32_t { kPieces = 1, kTrainer = 2, kNormalizer = 3, kDenormalizer = 5 };
enum PieceField : uint32_t { kText = 1, kScore = 2, kType = 3 };
enum TrainerField : uint32_t {
  kModelType = 3,
  kWhitespaceAsSuffix = 24,
  kByteFallback = 35,
  kUnknownSurface = 44,
  kBosPiece = 46,
  kEosPiece = 47
};
enum NormalizerField : uint32_t {
  kCharsmap = 2,
  kAddDummyPrefix = 3,
  kRemoveExtraWhitespaces = 4,
  kEscapeWhitespaces = 5
};

ModelPiece parse_piece(std::string_view message, const std::string& where) {
  ProtoReader reader(message, where);
  ModelPiece piece;
  for (ProtoField field; reader.next(field);) {
    if (field.number == kText) piece.text = reader.text(field, "piece");
    if (field.number == kScore) piece.score = reader.number(field, "score");
    if (field.number == kType) {
      const int64_t type = reader.integer(field, "type");
      require(type >= 1 && type <= 6, "{}: type is {}, expected 1 to 6", where, type);
      piece.type = static_cast<Type>(type);
    }
  }
  require(std::isfinite(piece.score), "{}: the score of '{}' is not a finite number", where, piece.text);
  return piece;
}

void parse_trainer(std::string_view message, const std::string& where, SentencePieceModel& model) {
  ProtoReader reader(message, where);
  for (ProtoField field; reader.next(field);) {
    if (field.number == kModelType) {
      const int64_t kind = reader.integer(field, "model_type");
      require(kind >= 1 && kind <= 4, "{}: model_type is {}, expected 1 to 4", where, kind);
      model.kind = static_cast<SentencePieceModel::Kind>(kind);
    }
    if (field.number == kWhitespaceAsSuffix)
      model.whitespace_as_suffix = reader.boolean(field, "treat_whitespace_as_suffix");
    if (field.number == kByteFallback) model.byte_fallback = reader.boolean(field, "byte_fallback");
    if (field.number == kUnknownSurface) model.unknown_surface = reader.text(field, "unk_surface");
    if (field.number == kBosPiece) model.bos = reader.text(field, "bos_piece");
    if (field.number == kEosPiece) model.eos = reader.text(field, "eos_piece");
  }
}

void parse_normalizer(std::string_view message, const std::string& where, SentencePieceModel& model) {
  ProtoReader reader(message, where);
  for (ProtoField field; reader.next(field);) {
    if (field.number == kCharsmap) model.charsmap = reader.bytes(field, "precompiled_charsmap");
    if (field.number == kAddDummyPrefix) model.add_dummy_prefix = reader.boolean(field, "add_dummy_prefix");
    if (field.number == kRemoveExtraWhitespaces)
      model.remove_extra_whitespaces = reader.boolean(field, "remove_extra_whitespaces");
    if (field.number == kEscapeWhitespaces)
      model.escape_whitespaces = reader.boolean(field, "escape_whitespaces");
  }
}

void check_denormalizer(std::string_view message, const std::string& where) {
  ProtoReader reader(message, where);
  for (ProtoField field; reader.next(field);)
    if (field.number == kCharsmap)
      supported(reader.bytes(field, "precompiled_charsmap").empty(),
                "{}: precompiled_charsmap: text cannot be changed after decoding", where);
}

}  // namespace

SentencePieceModel parse_sentencepiece_model(std::string_view file, const std::string& source) {
  SentencePieceModel model;
  ProtoReader reader(file, source);
  for (ProtoField field; reader.next(field);) {
    if (field.number == kPieces) {
      require(static_cast<int64_t>(model.pieces.size()) < kMaxId, "{}: has more than {} pieces", source,
              kMaxId);
      model.pieces.push_back(parse_piece(reader.bytes(field, "pieces"),
                                         fmt::format("{}: pieces[{}]", source, model.pieces.size())));
    }
    if (field.number == kTrainer)
      parse_trainer(reader.bytes(field, "trainer_spec"), source + ": trainer_spec", model);
    if (field.number == kNormalizer)
      parse_normalizer(reader.bytes(field, "normalizer_spec"), source + ": normalizer_spec", model);
    if (field.number == kDenormalizer)
      check_denormalizer(reader.bytes(field, "denormalizer_spec"), source + ": denormalizer_spec");
  }
  check_sentencepiece_model(model, source);
  return model;
}

void check_sentencepiece_model(const SentencePieceModel& model, const std::string& source) {
  std::unordered_set<std::string_view> texts;
  size_t unknown = 0, bytes = 0;
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    const ModelPiece& piece = model.pieces[id];
    require(!piece.text.empty(), "{}: pieces[{}]: is empty", source, id);
    require(texts.insert(piece.text).second, "{}: pieces[{}]: '{}' is there twice", source, id, piece.text);
    unknown += piece.type == Type::unknown;
    bytes += piece.type == Type::byte;
  }
  require(!model.pieces.empty(), "{}: has no pieces", source);
  require(unknown == 1, "{}: has {} unknown pieces, expected 1", source, unknown);
  if (!model.byte_fallback) return;
  for (int byte = 0; byte < 256; ++byte)
    require(texts.count(fmt::format("<0x{:02X}>", byte)) == 1,
            "{}: has byte_fallback but no piece <0x{:02X}>; {} of 256 bytes are there", source, byte, bytes);
}

std::string write_sentencepiece_model(const SentencePieceModel& model) {
  ProtoWriter file, trainer, normalizer;
  for (const ModelPiece& piece : model.pieces) {
    ProtoWriter entry;
    entry.bytes(kText, piece.text);
    entry.number(kScore, piece.score);
    entry.integer(kType, static_cast<uint64_t>(piece.type));
    file.bytes(kPieces, entry.message());
  }
  trainer.integer(kModelType, static_cast<uint64_t>(model.kind));
  trainer.integer(kWhitespaceAsSuffix, model.whitespace_as_suffix);
  trainer.integer(kByteFallback, model.byte_fallback);
  trainer.bytes(kUnknownSurface, model.unknown_surface);
  trainer.bytes(kBosPiece, model.bos);
  trainer.bytes(kEosPiece, model.eos);
  normalizer.bytes(kCharsmap, model.charsmap);
  normalizer.integer(kAddDummyPrefix, model.add_dummy_prefix);
  normalizer.integer(kRemoveExtraWhitespaces, model.remove_extra_whitespaces);
  normalizer.integer(kEscapeWhitespaces, model.escape_whitespaces);
  file.bytes(kTrainer, trainer.message());
  file.bytes(kNormalizer, normalizer.message());
  return file.message();
}

}  // namespace weft
