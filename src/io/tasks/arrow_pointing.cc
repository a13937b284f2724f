// Arrow pointing: a grid of patches shows an arrow and a filled circle; does the arrow point at the circle? Poppel et al.
// 2025, arXiv:2506.11997. Train on a small grid, test on a larger one: the objects keep their sizes, the way from one to
// the other gets longer.
//
// Everything is in units of a patch, 16 pixels in the paper: a grid of 12 with patches of 16 pixels is its image of 192.
// Objects lie inside a margin of 1.875. The circle's radius r is uniform in [0.9375, 1.875] and its centre at least 2 r
// from the arrow's on each axis. Half of the rows are hits: the angle differs from that to the circle's centre by less
// than asin(r / 1.2 d) at distance d; the others by more than asin(1.2 r / d). So no case is close.
//
// Patches row by row. Drawn: the ink of P x P pixels, 0 to 1. Else seven numbers that say what is there, zeros in patches
// that hold no centre: arrow 1, circle 1, the centre's place in the patch less its middle (x, y), the arrow's cosine and
// sine (y points down), the circle's radius.
#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/error.h"
#include "io/tasks/task.h"

namespace weft {
namespace {

constexpr double kMargin = 1.875, kSmallest = 0.9375, kLargest = 1.875;  // of radius and arrow length
constexpr double kThin = 0.125, kThick = 0.25;                           // strokes
constexpr double kClear = 1.2;
constexpr int64_t kNumbers = 7;

struct Point {
  double x = 0, y = 0;
};

struct Scene {
  Point arrow, circle;
  double angle = 0, radius = 0, length = 0, stroke = 0;
  bool hit = false;
};

Scene draw_scene(ExampleRandom& random, double side) {
  const auto between = [&](double low, double high) { return low + (high - low) * random.uniform(); };
  const double inner = side - 2 * kMargin;
  Scene scene;
  scene.radius = between(kSmallest, kLargest);
  scene.length = between(kSmallest, kLargest);
  scene.stroke = between(kThin, kThick);
  const auto place = [&](double& arrow, double& circle) {
    const double at = between(0, inner);
    arrow = kMargin + at;
    circle = kMargin + std::fmod(at + 2 * scene.radius + between(0, inner - 4 * scene.radius), inner);
  };
  place(scene.arrow.x, scene.circle.x);
  place(scene.arrow.y, scene.circle.y);
  const double x = scene.circle.x - scene.arrow.x, y = scene.circle.y - scene.arrow.y;
  scene.hit = random.below(2) == 1;
  const double half = std::asin(scene.radius * (scene.hit ? 1 / kClear : kClear) / std::hypot(x, y));
  const double off = scene.hit ? between(-half, half) : between(half, 2 * std::numbers::pi - half);
  scene.angle = std::atan2(y, x) + off;
  return scene;
}

double distance_to_segment(Point p, Point a, Point b) {
  const double dx = b.x - a.x, dy = b.y - a.y;
  const double along = std::clamp(((p.x - a.x) * dx + (p.y - a.y) * dy) / (dx * dx + dy * dy), 0.0, 1.0);
  return std::hypot(p.x - a.x - along * dx, p.y - a.y - along * dy);
}

// Distance from the ink, negative inside it.
double distance_to_ink(const Scene& scene, Point p) {
  const auto ahead = [&](Point from, double angle, double length) {
    return Point{from.x + length * std::cos(angle), from.y + length * std::sin(angle)};
  };
  const auto tip = ahead(scene.arrow, scene.angle, scene.length / 2),
             tail = ahead(scene.arrow, scene.angle, -scene.length / 2);
  double nearest = std::min(std::hypot(p.x - scene.circle.x, p.y - scene.circle.y) - scene.radius,
                            distance_to_segment(p, tail, tip) - scene.stroke / 2);
  for (const double spread : {-0.5, 0.5}) {
    const auto barb = ahead(tip, scene.angle + std::numbers::pi + spread, scene.length / 2.5);
    nearest = std::min(nearest, distance_to_segment(p, tip, barb) - scene.stroke / 2);
  }
  return nearest;
}

class ArrowPointing final : public Task {
 public:
  struct Options {
    int64_t side = 12, pixels = 0;
    void fields(Fields& f) {
      f("side", side, "rows and columns of patches; a row of the batch has side x side positions",
        at_least(12));
      f("pixels", pixels,
        "P, side of a patch in pixels that are drawn; 0: numbers that say what is in each patch", at_least(0),
        at_most(64));
    }
  };
  explicit ArrowPointing(const Options& options) : o_(options) {}

  TaskShape shape() const override {
    return {.kind = TaskShape::Kind::classes,
            .vocab = 0,
            .features = o_.pixels > 0 ? o_.pixels * o_.pixels : kNumbers,
            .outputs = 2,
            .chance = 0.5};
  }

  Examples examples(Split split, int64_t first, int64_t rows, uint64_t seed) const override {
    const int64_t patches = o_.side * o_.side, features = shape().features;
    auto inputs = at::zeros({rows, patches, features}, at::kFloat);
    auto targets = at::empty({rows}, at::kLong);
    for (int64_t row = 0; row < rows; ++row) {
      ExampleRandom random(seed, split, first + row);
      const auto scene = draw_scene(random, static_cast<double>(o_.side));
      auto* image = inputs.data_ptr<float>() + row * patches * features;
      if (o_.pixels > 0)
        paint(scene, image);
      else
        describe(scene, image);
      targets.data_ptr<int64_t>()[row] = scene.hit ? 1 : 0;
    }
    return {inputs, targets};
  }

 private:
  void describe(const Scene& scene, float* image) const {
    const auto put = [&](Point center, int64_t flag) {
      const double column = std::floor(center.x), line = std::floor(center.y);
      auto* patch = image + (static_cast<int64_t>(line) * o_.side + static_cast<int64_t>(column)) * kNumbers;
      patch[flag] = 1;
      patch[2] = static_cast<float>(center.x - column - 0.5);
      patch[3] = static_cast<float>(center.y - line - 0.5);
      return patch;
    };
    auto* arrow = put(scene.arrow, 0);
    arrow[4] = static_cast<float>(std::cos(scene.angle));
    arrow[5] = static_cast<float>(std::sin(scene.angle));
    put(scene.circle, 1)[6] = static_cast<float>(scene.radius);
  }

  // Edges fade over one pixel.
  void paint(const Scene& scene, float* image) const {
    const double pixel = 1.0 / static_cast<double>(o_.pixels);
    for (int64_t line = 0; line < o_.side; ++line)
      for (int64_t column = 0; column < o_.side; ++column)
        for (int64_t y = 0; y < o_.pixels; ++y)
          for (int64_t x = 0; x < o_.pixels; ++x) {
            const Point p{static_cast<double>(column) + (static_cast<double>(x) + 0.5) * pixel,
                          static_cast<double>(line) + (static_cast<double>(y) + 0.5) * pixel};
            *image++ = static_cast<float>(std::clamp(0.5 - distance_to_ink(scene, p) / pixel, 0.0, 1.0));
          }
  }

  Options o_;
};
const RegisterTask<ArrowPointing> register_arrow_pointing{
    "arrow_pointing",
    "does the arrow point at the circle, on a grid of patches (pLSTM's task; larger grids in tests)"};

}  // namespace
}  // namespace weft
