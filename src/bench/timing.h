// Times of functions that take turns, so that a busy neighbour on the machine hits all of them alike.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace weft::bench {

// One call. Seconds.
struct Timing {
  double median_s = 0, best_s = 0;
  double spread = 0;  // interquartile range divided by the median
  int64_t samples = 0;
};

// InputError without samples.
Timing summarize(std::vector<double> seconds);

struct TimingOptions {
  int64_t warm_up = 2;     // calls of each function that are not counted
  int64_t samples = 7;     // at least, of each function
  double minimum_s = 0.4;  // of measuring each function; more samples are taken until then
  double sample_s = 2e-4;  // a sample is as many calls as take this long, at least one
  int64_t most_samples = 2000;
  double rest_s = 0;           // before each sample, in which threads of the one before stop looking for work
  std::function<void()> wait;  // waits for the device at the end of a sample; empty on the CPU
};

// Makes that many calls and says how many seconds they took; those of another process are timed there.
using Sampler = std::function<double(int64_t calls)>;
// `wait` is called at the end of a sample.
Sampler sampler_of(std::function<void()> function, std::function<void()> wait = {});

// Times of each; sample i of all is taken before sample i + 1 of any.
std::vector<Timing> time_in_turns(const std::vector<Sampler>& samplers, const TimingOptions& options);
std::vector<Timing> time_in_turns(const std::vector<std::function<void()>>& functions,
                                  const TimingOptions& options);

}  // namespace weft::bench
