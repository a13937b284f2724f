// Finite-state machines: the state after every token is asked. Parity and modular addition (sums of the tokens so far),
// products of permutations (the word problem of S_n or A_n, whose hardness for positive diagonal recurrences Merrill et
// al. 2024, arXiv:2404.08819, shows), flip-flop (Liu et al. 2023, arXiv:2306.00946), walks on a cycle.
#include <algorithm>
#include <map>

#include "base/error.h"
#include "io/tasks/task.h"

namespace weft {
namespace {

// Rows whose length is drawn from [shortest, length]: the rest of a row is padding, which is asked nothing.
struct Lengths {
  int64_t length = 40, shortest = 0;
  bool last_only = false;
  void fields(Fields& f) {
    f("length", length, "T, tokens of a row", at_least(1));
    f("shortest", shortest, "rows have at least so many tokens, the rest is padding; 0: all have length",
      at_least(0));
    f("last_only", last_only, "only the last state of a row is asked");
  }
};

// `next` draws a token and moves the state on; it returns the token.
template <class Next>
Examples run_machine(const Lengths& lengths, int64_t padding, int64_t start, Split split, int64_t first,
                     int64_t rows, uint64_t seed, const Next& next) {
  auto inputs = at::full({rows, lengths.length}, padding, at::kLong);
  auto targets = at::full({rows, lengths.length}, kNoTarget, at::kLong);
  for (int64_t row = 0; row < rows; ++row) {
    ExampleRandom random(seed, split, first + row);
    const int64_t shortest = lengths.shortest > 0 ? lengths.shortest : lengths.length;
    const int64_t tokens = shortest + random.below(lengths.length - shortest + 1);
    auto* input = inputs.data_ptr<int64_t>() + row * lengths.length;
    auto* target = targets.data_ptr<int64_t>() + row * lengths.length;
    int64_t state = start;
    for (int64_t t = 0; t < tokens; ++t) {
      input[t] = next(random, state);
      if (!lengths.last_only || t == tokens - 1) target[t] = state;
    }
  }
  return {inputs, targets};
}

void check_lengths(const Lengths& lengths, const char* task) {
  require(lengths.shortest <= lengths.length, "{}: shortest {} is above the length {}", task,
          lengths.shortest, lengths.length);
}

TaskShape machine_shape(int64_t tokens, int64_t states) {
  const int64_t vocab = std::max(tokens + 1, states);  // one more for padding
  return {.kind = TaskShape::Kind::tokens,
          .vocab = vocab,
          .features = 0,
          .outputs = vocab,
          .chance = 1.0 / static_cast<double>(states)};
}

class ModularAddition final : public Task {
 public:
  struct Options : Lengths {
    int64_t modulus = 5;
    void fields(Fields& f) {
      Lengths::fields(f);
      f("modulus", modulus, "tokens and sums are 0 .. modulus - 1", at_least(2));
    }
  };
  explicit ModularAddition(const Options& options) : o_(options) { check_lengths(o_, "modular_addition"); }
  TaskShape shape() const override { return machine_shape(o_.modulus, o_.modulus); }
  Examples examples(Split split, int64_t first, int64_t rows, uint64_t seed) const override {
    return run_machine(o_, o_.modulus, 0, split, first, rows, seed,
                       [&](ExampleRandom& random, int64_t& state) {
                         const int64_t token = random.below(o_.modulus);
                         state = (state + token) % o_.modulus;
                         return token;
                       });
  }

 private:
  Options o_;
};
const RegisterTask<ModularAddition> register_modular_addition{"modular_addition",
                                                              "the sum of the numbers so far, modulo m"};

class Parity final : public Task {
 public:
  using Options = Lengths;
  explicit Parity(const Options& options) : o_(options) { check_lengths(o_, "parity"); }
  TaskShape shape() const override { return machine_shape(2, 2); }
  Examples examples(Split split, int64_t first, int64_t rows, uint64_t seed) const override {
    return run_machine(o_, 2, 0, split, first, rows, seed, [](ExampleRandom& random, int64_t& state) {
      const int64_t token = random.below(2);
      state ^= token;
      return token;
    });
  }

 private:
  Options o_;
};
const RegisterTask<Parity> register_parity{"parity", "whether the ones so far are odd in number"};

class CycleNavigation final : public Task {
 public:
  struct Options : Lengths {
    int64_t positions = 5;
    void fields(Fields& f) {
      Lengths::fields(f);
      f("positions", positions, "of the cycle", at_least(2));
    }
  };
  explicit CycleNavigation(const Options& options) : o_(options) { check_lengths(o_, "cycle_navigation"); }
  TaskShape shape() const override { return machine_shape(3, o_.positions); }
  Examples examples(Split split, int64_t first, int64_t rows, uint64_t seed) const override {
    return run_machine(o_, 3, 0, split, first, rows, seed, [&](ExampleRandom& random, int64_t& state) {
      const int64_t token = random.below(3);  // stay, forward, back
      state = (state + (token == 1 ? 1 : token == 2 ? o_.positions - 1 : 0)) % o_.positions;
      return token;
    });
  }

 private:
  Options o_;
};
const RegisterTask<CycleNavigation> register_cycle_navigation{"cycle_navigation",
                                                              "the place on a cycle after steps and rests"};

class FlipFlop final : public Task {
 public:
  struct Options : Lengths {
    double ignore = 0.8;
    void fields(Fields& f) {
      Lengths::fields(f);
      f("ignore", ignore, "share of instructions that are to be ignored; the others write or read",
        at_least(0), below(1));
    }
  };
  explicit FlipFlop(const Options& options) : o_(options) {
    check_lengths(o_, "flip_flop");
    require(o_.length % 2 == 0 && o_.length >= 4, "flip_flop: length {} must be even and at least 4",
            o_.length);
  }
  // Tokens: bits 0 and 1, write 2, read 3, ignore 4; instruction and bit in turns. Asked at every read: the bit that
  // follows it.
  TaskShape shape() const override {
    return {.kind = TaskShape::Kind::tokens, .vocab = 5, .features = 0, .outputs = 5, .chance = 0.5};
  }
  Examples examples(Split split, int64_t first, int64_t rows, uint64_t seed) const override {
    auto inputs = at::empty({rows, o_.length}, at::kLong);
    auto targets = at::full({rows, o_.length}, kNoTarget, at::kLong);
    for (int64_t row = 0; row < rows; ++row) {
      ExampleRandom random(seed, split, first + row);
      auto* input = inputs.data_ptr<int64_t>() + row * o_.length;
      auto* target = targets.data_ptr<int64_t>() + row * o_.length;
      int64_t memory = 0;
      for (int64_t t = 0; t < o_.length; t += 2) {
        const double draw = random.uniform();
        const bool ignored = draw < o_.ignore, written = draw >= (1 + o_.ignore) / 2;
        input[t] = t == 0 || (written && t + 2 < o_.length) ? 2 : t + 2 == o_.length || !ignored ? 3 : 4;
        if (input[t] == 3) target[t] = memory;
        input[t + 1] = input[t] == 3 ? memory : random.below(2);
        if (input[t] == 2) memory = input[t + 1];
      }
    }
    return {inputs, targets};
  }

 private:
  Options o_;
};
const RegisterTask<FlipFlop> register_flip_flop{"flip_flop",
                                                "the bit written last, among bits to be ignored"};

class PermutationWords final : public Task {
 public:
  struct Options : Lengths {
    int64_t items = 5;
    std::string group = "symmetric";
    int64_t generators = 0;
    void fields(Fields& f) {
      Lengths::fields(f);
      f("items", items, "n of the group S_n or A_n", at_least(3), at_most(5));
      f("group", group, "symmetric: all permutations; alternating: the even ones",
        one_of({"symmetric", "alternating"}));
      f("generators", generators, "tokens are the first so many elements (identity first); 0: all",
        at_least(0));
    }
  };
  explicit PermutationWords(const Options& options) : o_(options) {
    check_lengths(o_, "permutation_words");
    std::vector<int64_t> order(static_cast<size_t>(o_.items));
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int64_t>(i);
    do {
      int inversions = 0;
      for (size_t i = 0; i < order.size(); ++i)
        for (size_t j = i + 1; j < order.size(); ++j) inversions += order[i] > order[j];
      if (o_.group == "symmetric" || inversions % 2 == 0) elements_.push_back(order);
    } while (std::next_permutation(order.begin(), order.end()));
    std::map<std::vector<int64_t>, int64_t> number;
    for (size_t i = 0; i < elements_.size(); ++i) number[elements_[i]] = static_cast<int64_t>(i);
    const int64_t size = static_cast<int64_t>(elements_.size());
    require(o_.generators <= size, "permutation_words: the group has {} elements, fewer than {} generators",
            size, o_.generators);
    product_.resize(static_cast<size_t>(size * size));
    for (int64_t a = 0; a < size; ++a)
      for (int64_t b = 0; b < size; ++b) {
        std::vector<int64_t> composed(order.size());
        for (size_t i = 0; i < composed.size(); ++i)
          composed[i] =
              elements_[static_cast<size_t>(b)][static_cast<size_t>(elements_[static_cast<size_t>(a)][i])];
        product_[static_cast<size_t>(a * size + b)] = number.at(composed);
      }
  }
  TaskShape shape() const override { return machine_shape(size(), size()); }
  Examples examples(Split split, int64_t first, int64_t rows, uint64_t seed) const override {
    const int64_t tokens = o_.generators > 0 ? o_.generators : size();
    return run_machine(o_, size(), 0, split, first, rows, seed, [&](ExampleRandom& random, int64_t& state) {
      const int64_t token = random.below(tokens);
      state = product_[static_cast<size_t>(state * size() + token)];
      return token;
    });
  }

 private:
  int64_t size() const { return static_cast<int64_t>(elements_.size()); }
  Options o_;
  std::vector<std::vector<int64_t>> elements_;  // in lexicographic order, the identity first
  std::vector<int64_t> product_;                // [size, size]: first the row's element, then the column's
};
const RegisterTask<PermutationWords> register_permutation_words{
    "permutation_words", "the product of the permutations so far (word problem of S5, A5)"};

}  // namespace
}  // namespace weft
