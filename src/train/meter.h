// Speed of a run and the time it still needs.
#pragma once

#include <chrono>
#include <cstdint>

namespace weft {

class Meter {
 public:
  // `seconds_before`: of training before this process took over.
  explicit Meter(double seconds_before) : before_(seconds_before), begin_(Clock::now()), last_(begin_) {}

  // One more step is done, with this many tokens.
  void step(int64_t tokens);
  // Over about the last ten seconds; 0 before the first step.
  double tokens_per_second() const { return seconds_ > 0 ? tokens_ / seconds_ : 0; }
  // Of all training, with what was before.
  double seconds() const;
  // Estimate for `steps` more, at the pace of this process so far with validations and checkpoints.
  double seconds_for(int64_t steps) const;

 private:
  using Clock = std::chrono::steady_clock;
  double before_;
  Clock::time_point begin_, last_;
  int64_t steps_ = 0;
  double tokens_ = 0, seconds_ = 0;  // sums that forget
};

}  // namespace weft
