#include "train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace weft {

void ScheduleOptions::fields(Fields& f) {
  f("kind", kind, "shape after the warm-up", one_of({"cosine", "wsd", "constant"}));
  f("warmup", warmup, "steps of linear warm-up", at_least(0));
  f("final", final, "learning rate at the last step as a share of the full one", at_least(0), at_most(1));
  f("decay", decay, "wsd: share of all steps that decays at the end", at_least(0), at_most(1));
}

double schedule_factor(const ScheduleOptions& schedule, int64_t step, int64_t steps) {
  if (step < schedule.warmup) return static_cast<double>(step + 1) / static_cast<double>(schedule.warmup);
  const double last = static_cast<double>(std::max<int64_t>(steps - 1, 0));
  const double now = std::min(static_cast<double>(step), last);
  if (schedule.kind == "cosine") {
    const double begin = static_cast<double>(schedule.warmup);
    const double done = last > begin ? (now - begin) / (last - begin) : 1.0;
    return schedule.final +
           (1 - schedule.final) * 0.5 * (1 + std::cos(std::numbers::pi * std::min(done, 1.0)));
  }
  if (schedule.kind == "wsd") {
    const double begin =
        std::max(last - schedule.decay * static_cast<double>(steps), static_cast<double>(schedule.warmup));
    if (now <= begin) return 1.0;
    return 1.0 - (1.0 - schedule.final) * (now - begin) / (last - begin);
  }
  return 1.0;
}

}  // namespace weft
