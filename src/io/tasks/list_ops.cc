// ListOps: the value of nested lists of digits under MIN, MAX, MED (the integer part of the median) and SM (the sum modulo
// 10). Nangia and Bowman 2018, arXiv:1804.06028; drawn as in Long Range Arena (Tay et al. 2020, arXiv:2011.04006).
//   [MAX 2 9 [MIN 4 7 ] ]  ->  9
// Tokens: digits 0 .. 9, the four operators with their opening bracket 10 .. 13, the closing bracket 14, padding 15.
#include <algorithm>

#include "base/error.h"
#include "io/tasks/task.h"

namespace weft {
namespace {

constexpr int64_t kOperators = 10, kClose = 14, kPadding = 15;

class ListOps final : public Task {
 public:
  struct Options {
    int64_t shortest = 500, length = 2000, depth = 10, arguments = 10;
    void fields(Fields& f) {
      f("shortest", shortest, "expressions have more tokens than this", at_least(0));
      f("length", length, "T, tokens of a row; expressions have fewer", at_least(4));
      f("depth", depth, "deepest nesting", at_least(1));
      f("arguments", arguments, "most arguments of an operator; each has at least 2", at_least(2));
    }
  };
  explicit ListOps(const Options& options) : o_(options) {
    require(o_.shortest + 1 < o_.length, "list_ops: shortest {} leaves nothing below the length {}",
            o_.shortest, o_.length);
  }
  TaskShape shape() const override {
    return {.kind = TaskShape::Kind::classes, .vocab = 16, .features = 0, .outputs = 10, .chance = 0.1};
  }
  Examples examples(Split split, int64_t first, int64_t rows, uint64_t seed) const override {
    auto inputs = at::full({rows, o_.length}, kPadding, at::kLong);
    auto targets = at::empty({rows}, at::kLong);
    std::vector<int64_t> tokens;
    for (int64_t row = 0; row < rows; ++row) {
      ExampleRandom random(seed, split, first + row);
      int64_t value = 0, tries = 0;
      do {
        require(++tries < 1000000, "list_ops: a million draws gave no expression of {} to {} tokens",
                o_.shortest + 1, o_.length - 1);
        tokens.clear();
        value = draw(tokens, 1, random);
      } while (static_cast<int64_t>(tokens.size()) <= o_.shortest ||
               static_cast<int64_t>(tokens.size()) >= o_.length);
      std::copy(tokens.begin(), tokens.end(), inputs.data_ptr<int64_t>() + row * o_.length);
      targets.data_ptr<int64_t>()[row] = value;
    }
    return {inputs, targets};
  }

 private:
  // Appends an expression and returns its value; gives up early once it is too long.
  int64_t draw(std::vector<int64_t>& tokens, int64_t depth, ExampleRandom& random) const {
    const double share = depth < o_.depth ? random.uniform() : 1;
    if (static_cast<int64_t>(tokens.size()) >= o_.length) return 0;
    if (share <= 0.25 || depth == 1) {
      const size_t place = tokens.size();
      tokens.push_back(0);
      std::vector<int64_t> values(static_cast<size_t>(2 + random.below(o_.arguments - 1)));
      for (auto& value : values) value = draw(tokens, depth + 1, random);
      const int64_t which = random.below(4);
      tokens[place] = kOperators + which;
      tokens.push_back(kClose);
      return apply(which, values);
    }
    tokens.push_back(random.below(10));
    return tokens.back();
  }

  static int64_t apply(int64_t which, std::vector<int64_t> values) {
    std::sort(values.begin(), values.end());
    if (which == 0) return values.front();
    if (which == 1) return values.back();
    const size_t n = values.size();
    if (which == 2) return (values[(n - 1) / 2] + values[n / 2]) / 2;
    int64_t sum = 0;
    for (const auto value : values) sum += value;
    return sum % 10;
  }
  Options o_;
};
const RegisterTask<ListOps> register_list_ops{"list_ops", "values of nested lists of digits"};

}  // namespace
}  // namespace weft
