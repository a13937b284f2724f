// Finding one thing in a long row. Induction heads (Olsson et al. 2022, arXiv:2209.11895; as trained by Gu and Dao 2023,
// arXiv:2312.00752): a special token stands once inside random tokens and again at the end, where the token that
// followed it is asked. Needle: a key and a value somewhere in noise, the key again at the end.
#include "base/error.h"
#include "io/tasks/task.h"

namespace weft {
namespace {

class InductionHeads final : public Task {
 public:
  struct Options {
    int64_t length = 256, vocab = 16;
    void fields(Fields& f) {
      f("length", length, "T, tokens of a row", at_least(4));
      f("vocab", vocab, "tokens, the last of which is the special one", at_least(3));
    }
  };
  explicit InductionHeads(const Options& options) : o_(options) {}

  TaskShape shape() const override {
    return {.kind = TaskShape::Kind::tokens,
            .vocab = o_.vocab,
            .features = 0,
            .outputs = o_.vocab,
            .chance = 1.0 / static_cast<double>(o_.vocab - 1)};
  }

  Examples examples(Split split, int64_t first, int64_t rows, uint64_t seed) const override {
    auto inputs = at::empty({rows, o_.length}, at::kLong);
    auto targets = at::full({rows, o_.length}, kNoTarget, at::kLong);
    for (int64_t row = 0; row < rows; ++row) {
      ExampleRandom random(seed, split, first + row);
      auto* input = inputs.data_ptr<int64_t>() + row * o_.length;
      for (int64_t t = 0; t < o_.length; ++t) input[t] = random.below(o_.vocab - 1);
      const int64_t place = random.below(o_.length - 2);
      input[place] = input[o_.length - 1] = o_.vocab - 1;
      targets.data_ptr<int64_t>()[(row + 1) * o_.length - 1] = input[place + 1];
    }
    return {inputs, targets};
  }

 private:
  Options o_;
};
const RegisterTask<InductionHeads> register_induction_heads{
    "induction_heads", "what followed the special token when it stood in the row before"};

class Needle final : public Task {
 public:
  struct Options {
    int64_t length = 256, vocab = 64, keys = 8;
    double depth = -1;
    void fields(Fields& f) {
      f("length", length, "T, tokens of a row", at_least(4));
      f("vocab", vocab, "tokens: keys first, then values and noise", at_least(4));
      f("keys", keys, "different keys; noise and values are never keys", at_least(1));
      f("depth", depth, "where the needle stands, 0 the start, 1 the end; -1: anywhere", at_least(-1),
        at_most(1));
    }
  };
  explicit Needle(const Options& options) : o_(options) {
    require(o_.keys + 2 <= o_.vocab, "needle: {} keys leave no values in a vocabulary of {}", o_.keys,
            o_.vocab);
  }

  TaskShape shape() const override {
    return {.kind = TaskShape::Kind::tokens,
            .vocab = o_.vocab,
            .features = 0,
            .outputs = o_.vocab,
            .chance = 1.0 / static_cast<double>(o_.vocab - o_.keys)};
  }

  Examples examples(Split split, int64_t first, int64_t rows, uint64_t seed) const override {
    auto inputs = at::empty({rows, o_.length}, at::kLong);
    auto targets = at::full({rows, o_.length}, kNoTarget, at::kLong);
    const auto value = [&](ExampleRandom& random) { return o_.keys + random.below(o_.vocab - o_.keys); };
    for (int64_t row = 0; row < rows; ++row) {
      ExampleRandom random(seed, split, first + row);
      auto* input = inputs.data_ptr<int64_t>() + row * o_.length;
      for (int64_t t = 0; t < o_.length; ++t) input[t] = value(random);
      const int64_t places = o_.length - 2;
      const int64_t place = o_.depth < 0
                                ? random.below(places)
                                : static_cast<int64_t>(o_.depth * static_cast<double>(places - 1) + 0.5);
      input[place] = input[o_.length - 1] = random.below(o_.keys);
      targets.data_ptr<int64_t>()[(row + 1) * o_.length - 1] = input[place + 1];
    }
    return {inputs, targets};
  }

 private:
  Options o_;
};
const RegisterTask<Needle> register_needle{"needle", "the value of one key somewhere in noise"};

}  // namespace
}  // namespace weft
