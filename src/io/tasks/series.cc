// Time series: forecasting and filling gaps. A table of numbers (CSV with a heading and a date in the first column, as
// ETT's; Zhou et al. 2021, arXiv:2012.07436), or, without a file, seven channels of daily and weekly waves, a trend and
// autoregressive noise. Columns are scaled by the training rows' mean and deviation; windows slide by one row.
//   forecast  x [input, C] -> the next `horizon` rows of one channel at a time: targets [B, horizon]
//   impute    x with a share of its values hidden (zero), and which are hidden -> all values at every position
// Channels are independent rows of the task: a window of C channels is C examples.
#include <cmath>
#include <cstdlib>
#include <limits>
#include <numbers>

#include "base/error.h"
#include "io/datasets/compressed.h"
#include "io/tasks/finite.h"

namespace weft {
namespace {

// [rows, columns] of a CSV with a heading; columns that are not numbers (dates) are left out.
at::Tensor read_table(const std::string& path, const std::string& hint) {
  const auto text = read_data_file(path, hint);
  std::vector<float> numbers;
  int64_t rows = 0, columns = 0;
  size_t at = text.find('\n');
  require(at != std::string::npos, "{}: expected a heading and lines of numbers", path);
  while (++at < text.size()) {
    const size_t end = std::min(text.find('\n', at), text.size());
    int64_t found = 0;
    for (size_t cell = at; cell < end;) {
      const size_t comma = std::min(text.find(',', cell), end);
      const auto content = text.substr(cell, comma - cell);
      char* after = nullptr;
      const float value = std::strtof(content.c_str(), &after);
      while (*after == '\r' || *after == ' ') ++after;
      if (*after == 0 && !content.empty()) {
        numbers.push_back(value);
        ++found;
      } else {
        require(cell == at, "{}:{}: '{}' is not a number", path, rows + 2, content.substr(0, 40));
      }
      cell = comma + 1;
    }
    if (end > at) {
      if (rows == 0) columns = found;
      require(found == columns && columns > 0, "{}:{}: {} numbers, expected {}", path, rows + 2, found,
              columns);
      ++rows;
    }
    at = end;
  }
  require(rows > 0, "{}: no lines of numbers", path);
  return at::from_blob(numbers.data(), {rows, columns}, at::kFloat).clone();
}

at::Tensor generated_table(int64_t rows, int64_t channels) {
  auto table = at::empty({rows, channels});
  for (int64_t c = 0; c < channels; ++c) {
    ExampleRandom random(17, Split::train, c);
    const double day = random.uniform() * 2 * std::numbers::pi,
                 week = random.uniform() * 2 * std::numbers::pi;
    const double daily = 0.5 + random.uniform(), weekly = 0.5 * random.uniform(),
                 slope = 0.3 * random.normal();
    double noise = 0;
    for (int64_t t = 0; t < rows; ++t) {
      noise = 0.8 * noise + 0.25 * random.normal();
      const double hours = static_cast<double>(t);
      table[t][c] = daily * std::sin(2 * std::numbers::pi * hours / 24 + day) +
                    weekly * std::sin(2 * std::numbers::pi * hours / 168 + week) +
                    slope * hours / static_cast<double>(rows) + noise;
    }
  }
  return table;
}

class Series final : public Task {
 public:
  struct Options {
    std::string file, hint =
                          "ETT-small of github.com/zhouhaoyi/ETDataset has ETTh1.csv; without data.file a "
                          "generated table is used";
    std::string objective = "forecast";
    int64_t input = 96, horizon = 96, patch = 1, train_rows = 8640, test_rows = 2880, valid_rows = 2880;
    double hidden = 0.25;
    bool instance_norm = true;
    void fields(Fields& f) {
      f("file", file,
        "CSV with a heading; columns that are no numbers are left out; empty: a generated table");
      f("hint", hint, "what to do when the file is absent");
      f("objective", objective, "what is asked", one_of({"forecast", "impute"}));
      f("input", input, "rows that are seen", at_least(2));
      f("horizon", horizon, "rows that are forecast", at_least(1));
      f("patch", patch, "F, rows that make one position", at_least(1));
      f("train_rows", train_rows, "rows for training, from the start", at_least(1));
      f("valid_rows", valid_rows, "rows after these that are not used", at_least(0));
      f("test_rows", test_rows, "rows after these for testing; the windows begin `input` rows before",
        at_least(1));
      f("hidden", hidden, "share of values that are hidden for impute", above(0), below(1));
      f("instance_norm", instance_norm, "each window's mean and deviation are taken out, of the targets too");
    }
  };

  explicit Series(const Options& options) : o_(options) {
    auto table = o_.file.empty() ? generated_table(o_.train_rows + o_.valid_rows + o_.test_rows, 7)
                                 : read_table(o_.file, o_.hint);
    const int64_t test = o_.train_rows + o_.valid_rows, end = test + o_.test_rows;
    require(table.size(0) >= end, "{}: {} rows, but {} are to be used", o_.file, table.size(0), end);
    require(o_.input % o_.patch == 0, "series: patch {} does not divide input {}", o_.patch, o_.input);
    require(o_.train_rows >= o_.input + ahead() && o_.test_rows >= ahead(),
            "series: too few rows for one window of {}", o_.input + ahead());
    const auto known = table.slice(0, 0, o_.train_rows);
    table = (table - known.mean(0)) / known.std(0, /*unbiased=*/false).clamp_min(1e-6);
    train_ = table.slice(0, 0, o_.train_rows).t().contiguous();  // [C, rows]
    test_ = table.slice(0, test - o_.input, end).t().contiguous();
  }

  TaskShape shape() const override {
    const bool impute = o_.objective == "impute";
    return {.kind = impute ? TaskShape::Kind::values : TaskShape::Kind::vector,
            .vocab = 0,
            .features = impute ? 2 * o_.patch : o_.patch,
            .outputs = impute ? o_.patch : o_.horizon,
            .chance = 0};
  }
  int64_t size(Split split) const override {
    const auto& table = split == Split::train ? train_ : test_;
    return table.size(0) * windows(table);
  }
  Examples examples(Split split, int64_t first, int64_t rows, uint64_t seed) const override {
    const auto& table = split == Split::train ? train_ : test_;
    const auto numbers = finite_rows(split, first, rows, size(split), seed);
    auto window = at::empty({rows, o_.input + ahead()});
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t number = numbers.data_ptr<int64_t>()[i], channel = number / windows(table);
      const int64_t begin = number % windows(table);
      window[i].copy_(table[channel].slice(0, begin, begin + o_.input + ahead()));
    }
    if (o_.instance_norm) {
      const auto seen = window.slice(1, 0, o_.input);
      const auto mean = seen.mean(1, true), deviation = (seen.var(1, /*unbiased=*/false, true) + 1e-5).sqrt();
      window = (window - mean) / deviation;
    }
    const auto patches = window.slice(1, 0, o_.input).unflatten(1, {-1, o_.patch});
    if (o_.objective == "forecast") return {patches.contiguous(), window.slice(1, o_.input).contiguous()};
    auto mask = at::empty_like(patches);
    for (int64_t i = 0; i < rows; ++i) {
      ExampleRandom random(seed + 1, split, first + i);
      auto* out = mask.data_ptr<float>() + i * o_.input;
      for (int64_t t = 0; t < o_.input; ++t) out[t] = random.uniform() < o_.hidden ? 1.0F : 0.0F;
    }
    const auto asked =
        at::where(mask > 0, patches, at::full_like(patches, std::numeric_limits<double>::quiet_NaN()));
    return {at::cat({patches * (1 - mask), mask}, -1), asked};
  }

 private:
  int64_t ahead() const { return o_.objective == "forecast" ? o_.horizon : 0; }
  int64_t windows(const at::Tensor& table) const { return table.size(1) - o_.input - ahead() + 1; }
  Options o_;
  at::Tensor train_, test_;
};
const RegisterTask<Series> register_series{"series", "windows of time series: forecasting, filling gaps"};

}  // namespace
}  // namespace weft
