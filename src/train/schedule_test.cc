#include "train/schedule.h"

#include <gtest/gtest.h>

namespace weft {
namespace {

TEST(Schedule, WarmsUpLinearlyToTheFullRate) {
  const ScheduleOptions schedule{.kind = "constant", .warmup = 4};
  EXPECT_DOUBLE_EQ(schedule_factor(schedule, 0, 100), 0.25);
  EXPECT_DOUBLE_EQ(schedule_factor(schedule, 3, 100), 1.0);
  EXPECT_DOUBLE_EQ(schedule_factor(schedule, 99, 100), 1.0);
}

TEST(Schedule, CosineFallsFromOneToFinal) {
  const ScheduleOptions schedule{.kind = "cosine", .warmup = 10, .final = 0.1};
  EXPECT_DOUBLE_EQ(schedule_factor(schedule, 10, 111), 1.0);
  EXPECT_NEAR(schedule_factor(schedule, 60, 111), 0.55, 1e-12);
  EXPECT_NEAR(schedule_factor(schedule, 110, 111), 0.1, 1e-12);
  EXPECT_NEAR(schedule_factor(schedule, 500, 111), 0.1, 1e-12);
  for (int64_t step = 11; step < 111; ++step)
    EXPECT_LT(schedule_factor(schedule, step, 111), schedule_factor(schedule, step - 1, 111));
}

TEST(Schedule, WsdIsStableThenDecays) {
  const ScheduleOptions schedule{.kind = "wsd", .warmup = 5, .final = 0.0, .decay = 0.25};
  EXPECT_DOUBLE_EQ(schedule_factor(schedule, 5, 101), 1.0);
  EXPECT_DOUBLE_EQ(schedule_factor(schedule, 74, 101), 1.0);
  EXPECT_LT(schedule_factor(schedule, 76, 101), 1.0);
  EXPECT_NEAR(schedule_factor(schedule, 100, 101), 0.0, 1e-12);
}

TEST(Schedule, DegenerateRunsStayFinite) {
  for (const char* kind : {"cosine", "wsd", "constant"})
    for (const int64_t steps : {1, 2, 3}) {
      const ScheduleOptions schedule{.kind = kind, .warmup = 2, .final = 0.1, .decay = 1.0};
      for (int64_t step = 0; step < steps; ++step) {
        const double factor = schedule_factor(schedule, step, steps);
        EXPECT_TRUE(factor > 0 && factor <= 1) << kind << " " << step << "/" << steps << ": " << factor;
      }
    }
}

}  // namespace
}  // namespace weft
