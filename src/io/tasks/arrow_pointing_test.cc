#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "io/tasks/task.h"

namespace weft {
namespace {

std::unique_ptr<Task> make(int64_t side, int64_t pixels) {
  return make_task(
      Node::parse(fmt::format("{{task: arrow_pointing, side: {}, pixels: {}}}", side, pixels), "test"));
}

// What the numbers of one row say, in patches.
struct Seen {
  double arrow_x = 0, arrow_y = 0, cos = 0, sin = 0, circle_x = 0, circle_y = 0, radius = 0;
  int64_t arrows = 0, circles = 0;
};

Seen see(const at::Tensor& row, int64_t side) {  // [N, 7]
  Seen seen;
  const auto patch = row.accessor<float, 2>();
  for (int64_t n = 0; n < row.size(0); ++n) {
    const double x = static_cast<double>(n % side) + .5 + patch[n][2],
                 y = static_cast<double>(n / side) + .5 + patch[n][3];
    if (patch[n][0] == 1)
      ++seen.arrows, seen.arrow_x = x, seen.arrow_y = y, seen.cos = patch[n][4], seen.sin = patch[n][5];
    if (patch[n][1] == 1) ++seen.circles, seen.circle_x = x, seen.circle_y = y, seen.radius = patch[n][6];
  }
  return seen;
}

TEST(ArrowPointing, LabelsAreTheGeometry) {
  for (const int64_t side : {12, 24}) {
    const auto batch = make(side, 0)->examples(Split::train, 0, 400, 3);
    double hits = 0, farthest = 0;
    for (int64_t i = 0; i < 400; ++i) {
      const auto s = see(batch.inputs[i], side);
      ASSERT_EQ(s.arrows, 1);
      ASSERT_EQ(s.circles, 1);
      EXPECT_NEAR(s.cos * s.cos + s.sin * s.sin, 1, 1e-5);
      const double x = s.circle_x - s.arrow_x, y = s.circle_y - s.arrow_y;
      for (const double d : {x, y}) EXPECT_GE(std::abs(d), 2 * s.radius - 1e-5);
      for (const double place : {s.arrow_x, s.arrow_y, s.circle_x, s.circle_y}) {
        EXPECT_GE(place, 1.875 - 1e-5);
        EXPECT_LE(place, static_cast<double>(side) - 1.875 + 1e-5);
      }
      // How far the line through the arrow passes from the centre, and whether the circle is ahead.
      const double off = std::abs(x * s.sin - y * s.cos), ahead = x * s.cos + y * s.sin;
      const bool hit = batch.targets[i].item<int64_t>() == 1;
      if (hit) {
        EXPECT_LE(off, s.radius / 1.2 + 1e-5);
        EXPECT_GT(ahead, 0);
      } else {
        EXPECT_TRUE(off >= 1.2 * s.radius - 1e-5 || ahead < 0);
      }
      hits += hit;
      farthest = std::max(farthest, std::hypot(x, y));
    }
    EXPECT_NEAR(hits, 200, 45);
    EXPECT_GT(farthest, .5 * static_cast<double>(side));  // a larger grid has longer ways
  }
}

// The drawn image of the same scene: ink where the numbers say, nowhere else.
TEST(ArrowPointing, ImagesShowTheSameScene) {
  constexpr int64_t kSide = 12, kPixels = 8;
  const auto told = make(kSide, 0)->examples(Split::test, 5, 20, 9),
             drawn = make(kSide, kPixels)->examples(Split::test, 5, 20, 9);
  EXPECT_TRUE(at::equal(told.targets, drawn.targets));
  const auto images = drawn.inputs.view({20, kSide, kSide, kPixels, kPixels})
                          .permute({0, 1, 3, 2, 4})
                          .reshape({20, kSide * kPixels, kSide * kPixels});
  for (int64_t i = 0; i < 20; ++i) {
    const auto s = see(told.inputs[i], kSide);
    const auto ink = [&](double x, double y) {
      return images[i][static_cast<int64_t>(y * kPixels)][static_cast<int64_t>(x * kPixels)].item<float>();
    };
    EXPECT_EQ(ink(s.circle_x, s.circle_y), 1);
    EXPECT_GT(ink(s.arrow_x, s.arrow_y), .5);
    double near_arrow = 0, disc = 0, elsewhere = 0, ahead = 0;
    for (int64_t y = 0; y < kSide * kPixels; ++y)
      for (int64_t x = 0; x < kSide * kPixels; ++x) {
        const double px = (static_cast<double>(x) + .5) / kPixels,
                     py = (static_cast<double>(y) + .5) / kPixels;
        const double value = images[i][y][x].item<float>() / (kPixels * kPixels);
        const double from_arrow = std::hypot(px - s.arrow_x, py - s.arrow_y);
        if (std::hypot(px - s.circle_x, py - s.circle_y) < s.radius + .2) {
          disc += value;
        } else if (from_arrow < 1.2) {
          near_arrow += value;
          ahead += value * ((px - s.arrow_x) * s.cos + (py - s.arrow_y) * s.sin);
        } else {
          elsewhere += value;
        }
      }
    EXPECT_NEAR(disc, 3.14159 * s.radius * s.radius, .1 * disc);
    EXPECT_GT(near_arrow, .1);
    EXPECT_LT(near_arrow, 1.5);
    EXPECT_GT(ahead, 0);  // the head has more ink than the tail: the way it points shows
    EXPECT_EQ(elsewhere, 0);
  }
}

TEST(ArrowPointing, ExamplesDependOnTheirNumberOnly) {
  const auto task = make(13, 0);
  const auto all = task->examples(Split::train, 0, 8, 1), part = task->examples(Split::train, 3, 2, 1);
  EXPECT_TRUE(at::equal(all.inputs.slice(0, 3, 5), part.inputs));
  EXPECT_FALSE(at::equal(all.inputs, task->examples(Split::test, 0, 8, 1).inputs));
  EXPECT_FALSE(at::equal(all.inputs, task->examples(Split::train, 0, 8, 2).inputs));
  EXPECT_THROW(make(11, 0), InputError);
}

}  // namespace
}  // namespace weft
