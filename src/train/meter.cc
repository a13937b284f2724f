#include "train/meter.h"

#include <cmath>

namespace weft {
namespace {

double since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

void Meter::step(int64_t tokens) {
  constexpr double kMemory = 10;  // seconds
  const double took = since(last_), keep = std::exp(-took / kMemory);
  tokens_ = keep * tokens_ + static_cast<double>(tokens);
  seconds_ = keep * seconds_ + took;
  last_ = Clock::now();
  ++steps_;
}

double Meter::seconds() const { return before_ + since(begin_); }

double Meter::seconds_for(int64_t steps) const {
  return steps_ ? since(begin_) / static_cast<double>(steps_) * static_cast<double>(steps) : 0;
}

}  // namespace weft
