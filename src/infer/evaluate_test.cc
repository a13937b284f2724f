#include "infer/evaluate.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "base/files.h"
#include "base/scratch_folder.h"
#include "infer/score.h"
#include "infer/text_pieces.h"
#include "infer/tiny_model.h"
#include "io/tokenizers/byte_tokenizer.h"

namespace weft {
namespace {

const ByteTokenizer bytes;

std::string some_text(size_t length) {
  std::string text;
  for (size_t i = 0; text.size() < length; ++i)
    text += "word" + std::string(i % 7, 'a') + (i % 11 == 0 ? "\n" : " ");
  text.resize(length);
  return text;
}

class Files : public ::testing::Test {
 protected:
  std::string write(const std::string& text) {
    const auto path = folder_.file("text" + std::to_string(files_++));
    write_atomically(path, text);
    return path;
  }
  ScratchFolder folder_;
  int files_ = 0;
};
using TextPiecesOfFiles = Files;
using Evaluate = Files;

std::string joined(TextPieces& pieces, int* documents = nullptr) {
  std::string all;
  for (TextPiece piece; pieces.next(piece);) {
    EXPECT_FALSE(piece.text.empty());
    EXPECT_LE(piece.text.size(), 64u << 10);
    if (piece.begins_document && documents) ++*documents;
    all += piece.text;
  }
  return all;
}

TEST_F(TextPiecesOfFiles, TogetherAreTheFile) {
  for (const size_t length : {0, 1, 65535, 65536, 65537, 300000}) {
    const auto text = some_text(length);
    TextPieces pieces(write(text));
    EXPECT_EQ(joined(pieces), text);
    EXPECT_EQ(pieces.bytes_done(), pieces.bytes_total());
  }
}

TEST_F(TextPiecesOfFiles, AreCutBetweenWords) {
  TextPieces pieces(write(some_text(200000)));
  TextPiece piece;
  pieces.next(piece);
  while (pieces.next(piece)) EXPECT_EQ(piece.text[0], ' ');
}

TEST_F(TextPiecesOfFiles, AreCutBetweenCharactersWhereThereAreNoWords) {
  std::string text;
  while (text.size() < 200000) text += "\xE2\x82\xAC";
  TextPieces pieces(write(text));
  for (TextPiece piece; pieces.next(piece);) EXPECT_EQ(piece.text.size() % 3, 0u);
}

TEST_F(TextPiecesOfFiles, SeparatorsCutDocuments) {
  int documents = 0;
  TextPieces pieces(write("<>a<>\nb<><>" + some_text(70000) + "<>c"), "<>");
  EXPECT_EQ(joined(pieces, &documents), "ab" + some_text(70000) + "c");
  EXPECT_EQ(documents, 4);
}

TEST_F(TextPiecesOfFiles, RefusesFoldersAndAbsentFiles) {
  EXPECT_THROW(TextPieces("/"), InputError);
  EXPECT_THROW(TextPieces("/no/such/file"), InputError);
}

// The definition: -log softmax of the whole form's logits at the next token.
double nats_of(Model& model, const std::string& text) {
  const auto ids = bytes.encode(text);
  const auto log_p = at::log_softmax(score(model, ids), 1);
  double nats = 0;
  for (size_t i = 0; i + 1 < ids.size(); ++i)
    nats -= log_p[static_cast<int64_t>(i)][ids[i + 1]].item<double>();
  return nats;
}

TEST_F(Evaluate, IsTheCrossEntropyForEveryChunk) {
  const auto model = tiny_model();
  const auto text = some_text(500);
  const auto path = write(text);
  const double expected = nats_of(*model, text);
  for (const int64_t chunk : {1, 7, 64, 499, 500, 4096}) {
    const auto out = evaluate(*model, bytes, path, {.chunk = chunk});
    EXPECT_NEAR(out.nats / expected, 1, 1e-6) << chunk;  // losses come as fp32 per token from the loss op
    EXPECT_EQ(out.tokens, 499);
    EXPECT_EQ(out.bytes, 499);
    EXPECT_EQ(out.documents, 1);
    EXPECT_DOUBLE_EQ(out.bits_per_byte(), out.nats / std::log(2.0) / 499);
    EXPECT_DOUBLE_EQ(out.perplexity(), std::exp(out.nats / 499));
  }
}

TEST_F(Evaluate, DocumentsBeginAnew) {
  const auto model = tiny_model();
  const std::string first = some_text(90), second = "Another document.", third = "x";
  const double expected = nats_of(*model, first) + nats_of(*model, second);
  const auto path = write(first + "\f" + second + "\f\n" + third);
  for (const int64_t chunk : {1, 10, 90, 91, 4096}) {
    const auto out = evaluate(*model, bytes, path, {.chunk = chunk, .separator = "\f"});
    EXPECT_NEAR(out.nats / expected, 1, 1e-6) << chunk;
    EXPECT_EQ(out.documents, 3);
    EXPECT_EQ(out.tokens, 89 + 16);
    EXPECT_EQ(out.bytes, 89 + 16);
  }
}

TEST_F(Evaluate, ReportsProgressAndCanBeCancelled) {
  const auto model = tiny_model(at::kFloat);
  const auto path = write(some_text(1000));
  int calls = 0;
  evaluate(*model, bytes, path, {.chunk = 100, .progress = [&](int64_t, int64_t total, const Evaluation&) {
                                   ++calls;
                                   EXPECT_EQ(total, 1000);
                                 }});
  EXPECT_EQ(calls, 10);
  const auto out = evaluate(*model, bytes, path, {.chunk = 100, .cancelled = [] { return true; }});
  EXPECT_FALSE(out.complete);
}

TEST_F(Evaluate, RefusesWhatItCannotMeasure) {
  const auto model = tiny_model();
  EXPECT_THROW(evaluate(*model, bytes, write("")), InputError);
  EXPECT_THROW(evaluate(*model, bytes, write("a")), InputError);
  EXPECT_THROW(evaluate(*model, bytes, write("text"), {.chunk = 0}), InputError);
  const auto small = tiny_model(at::kDouble, 100);
  EXPECT_THROW(evaluate(*small, bytes, write("text")), InputError);
}

}  // namespace
}  // namespace weft
