// Small fixed alphabets: characters, and nucleotides alone or in words of K.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "io/tokenizers/tokenizer.h"

namespace weft {

struct LetterAlphabet {
  std::string name;                  // as load_tokenizer knows it
  std::vector<std::string> letters;  // characters; a text has them one after another
  size_t other = 0;                  // the letter that any other character becomes
  int64_t word = 1;                  // letters that one id stands for
  bool fold_case = false;            // lower-case letters count as upper-case
};

// Ids: words of `word` letters in the order of the alphabet (the first letter counts most); with words of
// several letters then the letters alone, for the rest at the end of a text; last the end of a document
// ("<|endoftext|>"), which decodes to nothing.
std::shared_ptr<const Tokenizer> make_alphabet_tokenizer(const LetterAlphabet& alphabet);

// "characters": tab, newline, printable ASCII and U+FFFD for all else. "dna": A C G T N, where other letters are
// N. "dna-K": words of K from 1 to 8 of these. Null for any other name.
std::shared_ptr<const Tokenizer> make_named_alphabet(const std::string& name);

}  // namespace weft
