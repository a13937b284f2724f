// Multi-query associative recall: pairs of key and value, then some of the keys again, each asking for its value.
// Arora et al. 2023, arXiv:2312.04927; as there, the first half of the vocabulary are keys, the second values, and the
// gaps between pairs and queries follow a power law, so that most queries come early.
//   input   k1 v1 k2 v2 ... kn vn  . k2 . . k1 .     `.` is a random token that is asked nothing (0 with fill: zero)
//   target                           v2     v1       at the position of the repeated key
#include <cmath>

#include "base/error.h"
#include "io/tasks/task.h"

namespace weft {
namespace {

class Mqar final : public Task {
 public:
  struct Options {
    int64_t length = 64, pairs = 8, vocab = 256;
    double alpha = 0.01;
    bool random_fill = false;
    void fields(Fields& f) {
      f("length", length, "T, tokens of a row", at_least(4));
      f("pairs", pairs, "pairs of key and value in a row; all are asked for", at_least(1));
      f("vocab", vocab, "vocabulary: token 0, keys in the lower half, values in the upper", at_least(4));
      f("alpha", alpha, "exponent of the gaps' power law; near 0: queries soon after the pairs", above(0));
      f("random_fill", random_fill, "random tokens between the queries instead of token 0");
    }
  };

  explicit Mqar(const Options& options) : o_(options) {
    require(o_.length >= 4 * o_.pairs,
            "mqar: length {} has no room for {} pairs and their queries; at least {}", o_.length, o_.pairs,
            4 * o_.pairs);
    require(o_.vocab / 2 - 1 >= o_.pairs, "mqar: vocab {} has {} keys, fewer than {} pairs", o_.vocab,
            o_.vocab / 2 - 1, o_.pairs);
    const int64_t slots = (o_.length - 2 * o_.pairs) / 2;
    weights_.resize(static_cast<size_t>(slots));
    for (int64_t i = 0; i < slots; ++i)
      weights_[static_cast<size_t>(i)] = o_.alpha * std::pow(static_cast<double>(i + 1), o_.alpha - 1);
  }

  TaskShape shape() const override {
    return {.kind = TaskShape::Kind::tokens,
            .vocab = o_.vocab,
            .features = 0,
            .outputs = o_.vocab,
            .chance = 2.0 / static_cast<double>(o_.vocab)};
  }

  Examples examples(Split split, int64_t first, int64_t rows, uint64_t seed) const override {
    auto inputs = at::zeros({rows, o_.length}, at::kLong);
    auto targets = at::full({rows, o_.length}, kNoTarget, at::kLong);
    for (int64_t row = 0; row < rows; ++row) {
      ExampleRandom random(seed, split, first + row);
      fill(inputs.data_ptr<int64_t>() + row * o_.length, targets.data_ptr<int64_t>() + row * o_.length,
           random);
    }
    return {inputs, targets};
  }

 private:
  void fill(int64_t* input, int64_t* target, ExampleRandom& random) const {
    const int64_t half = o_.vocab / 2;
    if (o_.random_fill)
      for (int64_t t = 0; t < o_.length; ++t) input[t] = random.below(o_.vocab);
    const auto keys = random.choose(half - 1, o_.pairs), values = random.choose(o_.vocab - half, o_.pairs);
    for (int64_t i = 0; i < o_.pairs; ++i) {
      input[2 * i] = 1 + keys[static_cast<size_t>(i)];
      input[2 * i + 1] = half + values[static_cast<size_t>(i)];
    }
    auto weights = weights_;  // slots without replacement, near ones more often
    for (int64_t i = 0; i < o_.pairs; ++i) {
      const int64_t at = 2 * o_.pairs + 2 * draw(weights, random);
      input[at] = input[2 * i];
      target[at] = input[2 * i + 1];
    }
  }

  static int64_t draw(std::vector<double>& weights, ExampleRandom& random) {
    double sum = 0;
    for (const double weight : weights) sum += weight;
    double left = random.uniform() * sum;
    size_t chosen = 0;
    for (size_t i = 0; i < weights.size(); ++i) {
      if (weights[i] <= 0) continue;
      chosen = i;
      left -= weights[i];
      if (left < 0) break;
    }
    weights[chosen] = 0;
    return static_cast<int64_t>(chosen);
  }

  Options o_;
  std::vector<double> weights_;
};
const RegisterTask<Mqar> register_mqar{"mqar", "multi-query associative recall of key and value pairs"};

}  // namespace
}  // namespace weft
