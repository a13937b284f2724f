// Classification of time series from the UCR and UEA archives (Dau et al. 2018, arXiv:1810.07758): .ts files, whose lines
// after @data are channel:channel:...:label, values separated by commas; plain or gzip. Rows shorter than the longest are
// padded with their last values.
#include <algorithm>
#include <cstdlib>
#include <map>

#include "base/error.h"
#include "base/text.h"
#include "io/datasets/compressed.h"
#include "io/tasks/finite.h"

namespace weft {
namespace {

struct Recording {
  std::vector<std::vector<float>> channels;
  std::string label;
};

std::vector<float> numbers_of(const std::string& text, const std::string& where) {
  std::vector<float> numbers;
  const char* at = text.c_str();
  while (*at) {
    char* after = nullptr;
    numbers.push_back(std::strtof(at, &after));
    require(after != at, "{}: '{:.20}' is not a number", where, at);
    at = *after == ',' ? after + 1 : after;
    require(at != after || *at == 0, "{}: '{:.20}' after a number", where, after);
  }
  return numbers;
}

std::vector<Recording> read_recordings(const std::string& path, const std::string& hint) {
  const auto text = read_data_file(path, hint);
  std::vector<Recording> all;
  bool data = false;
  int64_t line = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    auto content = text.substr(at, end - at);
    at = end + 1;
    ++line;
    while (!content.empty() && (content.back() == '\r' || content.back() == ' ')) content.pop_back();
    if (content.empty() || content[0] == '#') continue;
    if (!data) {
      data = content == "@data" || content == "@Data";
      continue;
    }
    const auto where = fmt::format("{}:{}", path, line);
    Recording recording;
    size_t begin = 0;
    for (size_t colon; (colon = content.find(':', begin)) != std::string::npos; begin = colon + 1)
      recording.channels.push_back(numbers_of(content.substr(begin, colon - begin), where));
    recording.label = content.substr(begin);
    require(!recording.channels.empty(), "{}: expected channel:...:label", where);
    require(all.empty() || all[0].channels.size() == recording.channels.size(),
            "{}: {} channels, expected {}", where, recording.channels.size(),
            all.empty() ? 0 : all[0].channels.size());
    all.push_back(std::move(recording));
  }
  require(!all.empty(), "{}: no lines after @data", path);
  return all;
}

class ClassifySeries final : public Task {
 public:
  struct Options {
    std::string train, test,
        hint = "the UCR/UEA archive, timeseriesclassification.com, has NAME_TRAIN.ts and NAME_TEST.ts";
    void fields(Fields& f) {
      f("train", train, ".ts file to train on");
      f("test", test, ".ts file to test on");
      f("hint", hint, "what to do when a file is absent");
    }
  };
  explicit ClassifySeries(const Options& o) {
    require(!o.train.empty() && !o.test.empty(), "classify_series: train and test are missing; {}", o.hint);
    const auto train = read_recordings(o.train, o.hint), test = read_recordings(o.test, o.hint);
    require(train[0].channels.size() == test[0].channels.size(), "{}: {} channels, but {} has {}", o.test,
            test[0].channels.size(), o.train, train[0].channels.size());
    std::map<std::string, int64_t> labels;
    for (const auto& recording : train) labels.emplace(recording.label, 0);
    int64_t next = 0;
    for (auto& [label, number] : labels) number = next++;
    size_t longest = 1;
    for (const auto* set : {&train, &test})
      for (const auto& recording : *set)
        for (const auto& channel : recording.channels) longest = std::max(longest, channel.size());
    train_ = tensors(train, labels, longest, o.train);
    test_ = tensors(test, labels, longest, o.test);
    classes_ = next;
  }
  TaskShape shape() const override {
    return {.kind = TaskShape::Kind::classes,
            .vocab = 0,
            .features = train_.inputs.size(2),
            .outputs = classes_,
            .chance = 1.0 / static_cast<double>(classes_)};
  }
  int64_t size(Split split) const override { return of(split).targets.size(0); }
  Examples examples(Split split, int64_t first, int64_t rows, uint64_t seed) const override {
    const auto numbers = finite_rows(split, first, rows, size(split), seed);
    return {of(split).inputs.index_select(0, numbers), of(split).targets.index_select(0, numbers)};
  }

 private:
  const Examples& of(Split split) const { return split == Split::train ? train_ : test_; }
  // [N, longest, channels], each channel of a recording with mean 0 and deviation 1.
  static Examples tensors(const std::vector<Recording>& set, const std::map<std::string, int64_t>& labels,
                          size_t longest, const std::string& path) {
    const auto channels = set[0].channels.size();
    auto inputs = at::empty(
        {static_cast<int64_t>(set.size()), static_cast<int64_t>(longest), static_cast<int64_t>(channels)});
    auto targets = at::empty({static_cast<int64_t>(set.size())}, at::kLong);
    auto* out = inputs.data_ptr<float>();
    for (size_t n = 0; n < set.size(); ++n) {
      const auto found = labels.find(set[n].label);
      require(found != labels.end(), "{}: the label '{}' does not occur in training", path, set[n].label);
      targets.data_ptr<int64_t>()[n] = found->second;
      for (size_t c = 0; c < channels; ++c) {
        const auto& channel = set[n].channels[c];
        require(!channel.empty(), "{}: recording {} has an empty channel", path, n + 1);
        for (size_t t = 0; t < longest; ++t)
          out[(n * longest + t) * channels + c] = channel[std::min(t, channel.size() - 1)];
      }
    }
    const auto mean = inputs.mean(1, true),
               deviation = inputs.std(1, /*unbiased=*/false, true).clamp_min(1e-6);
    return {(inputs - mean) / deviation, targets};
  }
  Examples train_, test_;
  int64_t classes_ = 0;
};
const RegisterTask<ClassifySeries> register_classify_series{
    "classify_series", "classes of time series from .ts files (UCR, UEA)"};

}  // namespace
}  // namespace weft
