// n decks of cards for n games. A card is a number 0 .. 51: its suit is card % 4, its colour card % 2 (26
// cards each), its rank card / 4.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "io/tasks/task.h"

namespace weft::rl {

class Decks {
 public:
  static constexpr int64_t kCards = 52, kSuits = 4, kColors = 2, kRanks = 13;

  // Each of the n decks is `packs` packs of 52 cards, shuffled together.
  Decks(int64_t n, int64_t packs) : size_(kCards * packs), cards_(static_cast<size_t>(n * size_)) {}

  void shuffle(int64_t i, ExampleRandom& random) {
    uint8_t* deck = &cards_[static_cast<size_t>(i * size_)];
    for (int64_t c = 0; c < size_; ++c) deck[c] = static_cast<uint8_t>(c % kCards);
    for (int64_t c = 0; c + 1 < size_; ++c) std::swap(deck[c], deck[c + random.below(size_ - c)]);
  }

  int64_t size() const { return size_; }
  // The card at a place of deck i, from the top.
  int64_t card(int64_t i, int64_t place) const { return cards_[static_cast<size_t>(i * size_ + place)]; }
  int64_t suit(int64_t i, int64_t place) const { return card(i, place) % kSuits; }
  int64_t rank(int64_t i, int64_t place) const { return card(i, place) / kSuits; }

  // The face of a card when only so many kinds are told apart: 2 colours, 4 suits or 13 ranks.
  int64_t face(int64_t i, int64_t place, int64_t kinds) const {
    return kinds == kRanks ? rank(i, place) : card(i, place) % kinds;
  }

 private:
  int64_t size_;
  std::vector<uint8_t> cards_;  // [n, size]
};

}  // namespace weft::rl
