// Copying from memory. Selective copying (Gu and Dao 2023, arXiv:2312.00752, after Jing et al. 2019): data tokens at
// random places among noise, then as many "go" tokens that must give the data in order. With `selective` off the data
// stand at the start, a task that needs no choice by content. Delay: real numbers, to be given back d steps later
// (Gu et al. 2020, arXiv:2008.07669).
#include <algorithm>
#include <limits>

#include "base/error.h"
#include "io/tasks/task.h"

namespace weft {
namespace {

class SelectiveCopying final : public Task {
 public:
  struct Options {
    int64_t length = 64, data = 4, symbols = 14;
    bool selective = true;
    void fields(Fields& f) {
      f("length", length, "tokens before the go tokens; a row has length + data", at_least(1));
      f("data", data, "M, data tokens of a row", at_least(1));
      f("symbols", symbols, "different data tokens; the vocabulary has noise and go beside them",
        at_least(2));
      f("selective", selective, "data at random places; false: at the start");
    }
  };
  explicit SelectiveCopying(const Options& options) : o_(options) {
    require(o_.data <= o_.length, "selective_copying: {} data tokens do not fit into length {}", o_.data,
            o_.length);
  }

  TaskShape shape() const override {
    const int64_t vocab = o_.symbols + 2;
    return {.kind = TaskShape::Kind::tokens,
            .vocab = vocab,
            .features = 0,
            .outputs = vocab,
            .chance = 1.0 / static_cast<double>(o_.symbols)};
  }

  Examples examples(Split split, int64_t first, int64_t rows, uint64_t seed) const override {
    const int64_t noise = o_.symbols, go = o_.symbols + 1, tokens = o_.length + o_.data;
    auto inputs = at::full({rows, tokens}, noise, at::kLong);
    auto targets = at::full({rows, tokens}, kNoTarget, at::kLong);
    for (int64_t row = 0; row < rows; ++row) {
      ExampleRandom random(seed, split, first + row);
      auto* input = inputs.data_ptr<int64_t>() + row * tokens;
      auto* target = targets.data_ptr<int64_t>() + row * tokens;
      auto places = o_.selective ? random.choose(o_.length, o_.data) : std::vector<int64_t>();
      std::sort(places.begin(), places.end());
      for (int64_t i = 0; i < o_.data; ++i) {
        const int64_t symbol = random.below(o_.symbols);
        input[o_.selective ? places[static_cast<size_t>(i)] : i] = symbol;
        input[o_.length + i] = go;
        target[o_.length + i] = symbol;
      }
    }
    return {inputs, targets};
  }

 private:
  Options o_;
};
const RegisterTask<SelectiveCopying> register_selective_copying{
    "selective_copying", "data tokens among noise, to be repeated in order"};

class Delay final : public Task {
 public:
  struct Options {
    int64_t length = 1024, delay = 256;
    void fields(Fields& f) {
      f("length", length, "T, numbers of a row", at_least(2));
      f("delay", delay, "d: the target at t is the input at t - d", at_least(0));
    }
  };
  explicit Delay(const Options& options) : o_(options) {
    require(o_.delay < o_.length, "delay: {} is not below the length {}", o_.delay, o_.length);
  }

  TaskShape shape() const override {
    return {.kind = TaskShape::Kind::values, .vocab = 0, .features = 1, .outputs = 1, .chance = 0};
  }

  Examples examples(Split split, int64_t first, int64_t rows, uint64_t seed) const override {
    auto inputs = at::empty({rows, o_.length, 1});
    auto targets = at::full({rows, o_.length, 1}, std::numeric_limits<double>::quiet_NaN());
    for (int64_t row = 0; row < rows; ++row) {
      ExampleRandom random(seed, split, first + row);
      auto* input = inputs.data_ptr<float>() + row * o_.length;
      for (int64_t t = 0; t < o_.length; ++t) input[t] = static_cast<float>(random.normal());
    }
    targets.slice(1, o_.delay).copy_(inputs.slice(1, 0, o_.length - o_.delay));
    return {inputs, targets};
  }

 private:
  Options o_;
};
const RegisterTask<Delay> register_delay{"delay", "white noise, to be given back d steps later"};

}  // namespace
}  // namespace weft
