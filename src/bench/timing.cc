#include "bench/timing.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <thread>

#include "base/error.h"

namespace weft::bench {
namespace {

// Between the two values around rank share * (n - 1) of sorted values.
double quantile(const std::vector<double>& sorted, double share) {
  const double rank = share * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(rank);
  const auto above = std::min(below + 1, sorted.size() - 1);
  return std::lerp(sorted[below], sorted[above], rank - static_cast<double>(below));
}

// Warms up and says how many calls make a sample.
int64_t calls_of_sample(const Sampler& sampler, const TimingOptions& options) {
  if (options.warm_up > 0) sampler(options.warm_up);
  const double once = std::max(sampler(1), 1e-9);
  return std::clamp<int64_t>(static_cast<int64_t>(std::ceil(options.sample_s / once)), 1, 10000);
}

}  // namespace

Timing summarize(std::vector<double> seconds) {
  require(!seconds.empty(), "timing: no samples");
  std::sort(seconds.begin(), seconds.end());
  const double median = quantile(seconds, 0.5);
  return {.median_s = median,
          .best_s = seconds.front(),
          .spread = median > 0 ? (quantile(seconds, 0.75) - quantile(seconds, 0.25)) / median : 0,
          .samples = static_cast<int64_t>(seconds.size())};
}

Sampler sampler_of(std::function<void()> function, std::function<void()> wait) {
  return [function = std::move(function), wait = std::move(wait)](int64_t calls) {
    const auto begin = std::chrono::steady_clock::now();
    for (int64_t i = 0; i < calls; ++i) function();
    if (wait) wait();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
}

std::vector<Timing> time_in_turns(const std::vector<Sampler>& samplers, const TimingOptions& options) {
  std::vector<int64_t> calls;
  for (const auto& sampler : samplers) calls.push_back(calls_of_sample(sampler, options));
  std::vector<std::vector<double>> samples(samplers.size());
  const double wanted = options.minimum_s * static_cast<double>(samplers.size());
  double spent = 0;
  for (int64_t i = 0; i < options.most_samples && (i < options.samples || spent < wanted); ++i)
    for (size_t f = 0; f < samplers.size(); ++f) {
      if (options.rest_s > 0) std::this_thread::sleep_for(std::chrono::duration<double>(options.rest_s));
      const double seconds = samplers[f](calls[f]);
      samples[f].push_back(seconds / static_cast<double>(calls[f]));
      spent += seconds;
    }
  std::vector<Timing> timings;
  for (auto& of_sampler : samples) timings.push_back(summarize(std::move(of_sampler)));
  return timings;
}

std::vector<Timing> time_in_turns(const std::vector<std::function<void()>>& functions,
                                  const TimingOptions& options) {
  std::vector<Sampler> samplers;
  for (const auto& function : functions) samplers.push_back(sampler_of(function, options.wait));
  return time_in_turns(samplers, options);
}

}  // namespace weft::bench
