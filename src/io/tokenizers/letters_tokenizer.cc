#include "io/tokenizers/letters_tokenizer.h"

#include <nlohmann/json.hpp>
#include <unordered_map>

#include "base/error.h"
#include "base/files.h"
#include "io/tokenizers/utf8.h"

namespace weft {

namespace {

constexpr std::string_view kAlphabetEnd = "<|endoftext|>";
constexpr int64_t kLongestWord = 8;

class AlphabetTokenizer final : public Tokenizer {
 public:
  explicit AlphabetTokenizer(const LetterAlphabet& alphabet) : alphabet_(alphabet) {
    for (size_t i = 0; i < alphabet_.letters.size(); ++i) numbers_.emplace(alphabet_.letters[i], i);
    words_ = 1;
    for (int64_t i = 0; i < alphabet_.word; ++i) words_ *= letters();
    if (alphabet_.word > 1)
      for (int64_t id = 0; id < words_; ++id) texts_.push_back(spell(id));
    for (const std::string& letter : alphabet_.letters) texts_.push_back(letter);
    texts_.emplace_back();  // the end of a document
  }

  int64_t vocab_size() const override { return static_cast<int64_t>(texts_.size()); }

  std::vector<int64_t> encode(std::string_view text, const EncodeOptions& options) const override {
    std::vector<int64_t> ids;
    std::vector<size_t> word;
    const auto end_word = [&] {  // letters that fill no word stand alone
      for (const size_t letter : word) ids.push_back(single(letter));
      word.clear();
    };
    for (size_t at = 0; at < text.size();) {
      if (options.parse_special && text.substr(at).starts_with(kAlphabetEnd)) {
        end_word();
        ids.push_back(*end_of_text());
        at += kAlphabetEnd.size();
        continue;
      }
      const size_t bytes = utf8_step(text, at).bytes;
      word.push_back(number_of(text.substr(at, bytes)));
      at += bytes;
      if (static_cast<int64_t>(word.size()) < alphabet_.word) continue;
      int64_t id = 0;
      for (const size_t letter : word) id = id * letters() + static_cast<int64_t>(letter);
      ids.push_back(id);
      word.clear();
    }
    end_word();
    return ids;
  }

  std::string_view token_bytes(int64_t id) const override {
    require(is_token(id), "the id {} is not in the vocabulary of {} ids", id, vocab_size());
    return texts_[static_cast<size_t>(id)];
  }
  bool is_token(int64_t id) const override { return id >= 0 && id < vocab_size(); }
  bool is_special(int64_t id) const override { return id == vocab_size() - 1; }

  std::optional<int64_t> find(std::string_view token) const override {
    if (token == kAlphabetEnd) return end_of_text();
    for (size_t id = 0; id + 1 < texts_.size(); ++id)
      if (texts_[id] == token) return static_cast<int64_t>(id);
    return std::nullopt;
  }

  std::optional<int64_t> end_of_text() const override { return vocab_size() - 1; }
  std::string fingerprint() const override { return alphabet_.name + "-1"; }
  void save(const std::string& path) const override {
    write_atomically(path, nlohmann::json{{"weft_tokenizer", alphabet_.name}}.dump() + "\n");
  }

 private:
  int64_t letters() const { return static_cast<int64_t>(alphabet_.letters.size()); }
  int64_t single(size_t letter) const {
    return static_cast<int64_t>(letter) + (alphabet_.word > 1 ? words_ : 0);
  }

  size_t number_of(std::string_view character) const {
    std::string letter(character);
    if (alphabet_.fold_case && letter.size() == 1 && letter[0] >= 'a' && letter[0] <= 'z')
      letter[0] = static_cast<char>(letter[0] - 'a' + 'A');
    const auto found = numbers_.find(letter);
    return found == numbers_.end() ? alphabet_.other : found->second;
  }

  std::string spell(int64_t id) const {
    std::string text;
    for (int64_t i = 0; i < alphabet_.word; ++i, id /= letters())
      text.insert(0, alphabet_.letters[static_cast<size_t>(id % letters())]);
    return text;
  }

  LetterAlphabet alphabet_;
  std::unordered_map<std::string, size_t> numbers_;
  int64_t words_ = 1;
  std::vector<std::string> texts_;
};

LetterAlphabet ascii() {
  LetterAlphabet alphabet{.name = "characters", .letters = {"\t", "\n"}};
  for (char c = ' '; c <= '~'; ++c) alphabet.letters.emplace_back(1, c);
  alphabet.other = alphabet.letters.size();
  alphabet.letters.emplace_back("\xEF\xBF\xBD");
  return alphabet;
}

}  // namespace

std::shared_ptr<const Tokenizer> make_alphabet_tokenizer(const LetterAlphabet& alphabet) {
  return std::make_shared<AlphabetTokenizer>(alphabet);
}

std::shared_ptr<const Tokenizer> make_named_alphabet(const std::string& name) {
  if (name == "characters") return make_alphabet_tokenizer(ascii());
  LetterAlphabet dna{.name = name, .letters = {"A", "C", "G", "T", "N"}, .other = 4, .fold_case = true};
  if (name == "dna") return make_alphabet_tokenizer(dna);
  if (!name.starts_with("dna-") || name.size() != 5) return nullptr;
  dna.word = name[4] - '0';
  require(dna.word >= 1 && dna.word <= kLongestWord, "{}: words of {} letters; expected 1 to {}", name,
          name[4], kLongestWord);
  return make_alphabet_tokenizer(dna);
}

}  // namespace weft
