// Learns a byte-level BPE vocabulary and gives it as a tokenizer.json that Hugging Face's library reads too.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace weft {

struct BpeTraining {
  int64_t vocab_size = 8192;  // of all: 256 bytes, merges, special tokens
  std::vector<std::string> special_tokens = {
      "<|endoftext|>"};      // get the last ids; the first one ends documents
  std::string pattern = "";  // regular expression whose matches are pieces; "" takes GPT-2's
  int64_t min_count = 2;     // a pair must occur this often to be merged
  // Called with merges done and wanted, now and then and at the end.
  std::function<void(int64_t, int64_t)> progress = nullptr;
};

// `next` gives one text after another and false at the end. Deterministic: the most frequent pair first, ties
// to the pair with the smaller ids. Stops early when no pair is left that occurs min_count times. Time: 2 to
// 3 s for 5 MB on one core. InputError for a vocab_size below 256 + special tokens and for no text at all.
std::string train_bpe(const std::function<bool(std::string&)>& next, const BpeTraining& options);
std::string train_bpe(const std::vector<std::string>& texts, const BpeTraining& options);

}  // namespace weft
