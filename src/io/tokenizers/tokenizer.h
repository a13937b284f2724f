// Text to ids and back. Ids are int64 so that they go into tensors as they are; text is bytes, UTF-8 where it
// is text.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace weft {

struct EncodeOptions {
  // Adds what the definition puts around a text (a beginning-of-sequence id, for example).
  bool add_special = false;
  // Whether "<|endoftext|>" inside the text becomes the special id. False for text by strangers.
  bool parse_special = true;
};

// Turns ids into text one after another.
class TextDecoder {
 public:
  virtual ~TextDecoder() = default;
  // The bytes that no later id can change any more; often "". InputError for an id outside the vocabulary.
  virtual std::string push(int64_t id) = 0;
  // What is left at the end. The decoder is not used after that.
  virtual std::string finish() = 0;
};

// Immutable after loading and safe to use from several threads at once.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // One more than the largest id.
  virtual int64_t vocab_size() const = 0;
  // Bytes that are not UTF-8 are kept: decode(encode(x)) gives them back (where no normalizer changes the
  // text).
  virtual std::vector<int64_t> encode(std::string_view text, const EncodeOptions& options = {}) const = 0;
  // What one id adds to the middle of a text: bytes, not necessarily whole characters. Neighbours may change
  // it (a first space that is dropped), which decode() knows. InputError for an id outside the vocabulary.
  virtual std::string_view token_bytes(int64_t id) const = 0;
  // Whether the id stands for something; false outside the vocabulary and in its gaps. Never throws.
  virtual bool is_token(int64_t id) const = 0;
  // Control ids (end of text, padding...), which `decode` can leave out.
  virtual bool is_special(int64_t id) const = 0;
  // The id of a token by its text: special and added tokens, then the vocabulary's own spelling.
  virtual std::optional<int64_t> find(std::string_view token) const = 0;
  // The id that ends a document, if the definition has one.
  virtual std::optional<int64_t> end_of_text() const = 0;
  // A hash of the definition that is the same on every machine: equal means that ids can be exchanged.
  virtual std::string fingerprint() const = 0;
  // Writes the definition so that load_tokenizer(path) reads it back.
  virtual void save(const std::string& path) const = 0;

  // Must not outlive the tokenizer. By default every id adds its token_bytes.
  virtual std::unique_ptr<TextDecoder> decoder(bool skip_special) const;
  // The bytes of all ids; with skip_special without special ones. See to_utf8() for text that must be valid.
  std::string decode(const std::vector<int64_t>& ids, bool skip_special = false) const;
};

// Decodes id by id and gives only whole UTF-8 characters; bytes that can never become one give U+FFFD as
// to_utf8() does. The pieces together are to_utf8(decode(ids)). Keeps a reference to the tokenizer.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special = false)
      : tokenizer_(&tokenizer), skip_special_(skip_special), decoder_(tokenizer.decoder(skip_special)) {}
  // What can be shown after one more id; often "".
  std::string push(int64_t id);
  // What is left at the end, U+FFFD for an unfinished character. The next id begins a new text.
  std::string finish();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  std::unique_ptr<TextDecoder> decoder_;
  std::string pending_;
};

// `where` is a name or a path.
// Names: "bytes"; "characters" (Unicode code points); "dna" (the letters A C G T N) and "dna-K" for K from 1 to 8
// (words of K letters).
// Paths: a tokenizer.json, a SentencePiece model, a tiktoken file (base64 tokens and ranks), an RWKV vocabulary,
// a file written by save(), or a folder that holds tokenizer.json, tokenizer.model, *.tiktoken or rwkv_vocab*.txt
// (the first of these that is there). What a file is, its content says. A tokenizer_config.json beside it names
// special tokens.
// InputError for anything else and for files that are wrong, with file and field.
std::shared_ptr<const Tokenizer> load_tokenizer(const std::string& where);
// Whether a folder holds a file that load_tokenizer would take.
bool holds_tokenizer(const std::string& folder);

}  // namespace weft
