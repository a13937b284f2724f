// The learning rate over the course of a run, as a factor of the optimizer's own rate.
#pragma once

#include <cstdint>
#include <string>

#include "base/fields.h"

namespace weft {

struct ScheduleOptions {
  std::string kind = "cosine";
  int64_t warmup = 0;  // steps
  double final = 0.1;  // the factor at the last step
  double decay = 0.2;  // wsd: share of all steps that decays
  void fields(Fields& f);
};

// Factor for step `step` (from 0) of `steps`.
//   warm-up   linear from 1 / warmup to 1 over the first `warmup` steps
//   cosine    half a cosine from 1 after the warm-up to `final` at the last step
//   wsd       warm-up, stable, decay (Hu et al. 2024, MiniCPM, arXiv:2404.06395): 1, then linear to `final`
//   over the last
//             `decay` share of the steps
//   constant  1
// Steps beyond the last keep the last step's factor.
double schedule_factor(const ScheduleOptions& schedule, int64_t step, int64_t steps);

}  // namespace weft
