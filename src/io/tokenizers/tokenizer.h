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

// Immutable after loading and safe to use from several threads at once.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // One more than the largest id.
  virtual int64_t vocab_size() const = 0;
  // Bytes that are not UTF-8 are kept: decode(encode(x)) gives them back (where no normalizer changes the
  // text).
  virtual std::vector<int64_t> encode(std::string_view text, const EncodeOptions& options = {}) const = 0;
  // What one id adds to the text: bytes, not necessarily whole characters. InputError for an id outside the
  // vocabulary.
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

  // The bytes of all ids; with skip_special without special ones. See to_utf8() for text that must be valid.
  std::string decode(const std::vector<int64_t>& ids, bool skip_special = false) const;
};

// Decodes id by id and gives only whole UTF-8 characters; bytes that can never become one give U+FFFD as
// to_utf8() does. The pieces together are to_utf8(decode(ids)). Keeps a reference to the tokenizer.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special = false)
      : tokenizer_(&tokenizer), skip_special_(skip_special) {}
  // What can be shown after one more id; often "".
  std::string push(int64_t id);
  // What is left at the end: U+FFFD for an unfinished character, else "".
  std::string finish();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  std::string pending_;
};

// `where`: "bytes", a tokenizer.json, a file written by save(), or a folder that holds a tokenizer.json. A
// tokenizer_config.json beside it names the end-of-text token ("eos_token").
std::shared_ptr<const Tokenizer> load_tokenizer(const std::string& where);

}  // namespace weft
