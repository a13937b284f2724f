#include "train/curve.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace weft {
namespace {

struct Range {
  double low = 0, high = 1;
  double share(double value) const { return (value - low) / (high - low); }  // 0 to 1 inside
};

Range widen(double low, double high) {
  if (high > low) return {low, high};
  const double room = std::max(std::abs(low) * 0.05, 1e-6);
  return {low - room, high + room};
}

Range steps_of(const Curve& curve) {
  double low = INFINITY, high = -INFINITY;
  for (const auto* points : {&curve.train, &curve.valid})
    for (const auto& point : *points) {
      low = std::min(low, point.step);
      high = std::max(high, point.step);
    }
  return widen(low, high);
}

// The first few losses of a run are far above the rest; what is beyond the 98th percentile is drawn at the
// edge.
Range losses_of(const std::vector<CurvePoint>& train, const std::vector<CurvePoint>& valid) {
  std::vector<double> losses;
  for (const auto* points : {&train, &valid})
    for (const auto& point : *points) losses.push_back(point.loss);
  std::sort(losses.begin(), losses.end());
  const auto high = losses[static_cast<size_t>(static_cast<double>(losses.size() - 1) * 0.98)];
  return widen(losses.front(), high);
}

// A grid of Braille cells, two dots wide and four high each.
class Dots {
 public:
  Dots(int columns, int rows)
      : columns_(columns), rows_(rows), cells_(static_cast<size_t>(columns * rows), 0) {}

  // x and y from 0 to 1, y upwards.
  void set(double x, double y) {
    const int column = std::clamp(static_cast<int>(x * (columns_ * 2 - 1) + 0.5), 0, columns_ * 2 - 1);
    const int row = std::clamp(static_cast<int>((1 - y) * (rows_ * 4 - 1) + 0.5), 0, rows_ * 4 - 1);
    static constexpr int bits[4][2] = {{0x01, 0x08}, {0x02, 0x10}, {0x04, 0x20}, {0x40, 0x80}};
    cells_[static_cast<size_t>(row / 4 * columns_ + column / 2)] |= bits[row % 4][column % 2];
  }
  void mark(double x, double y, char sign) {
    const int column = std::clamp(static_cast<int>(x * (columns_ - 1) + 0.5), 0, columns_ - 1);
    const int row = std::clamp(static_cast<int>((1 - y) * (rows_ - 1) + 0.5), 0, rows_ - 1);
    cells_[static_cast<size_t>(row * columns_ + column)] = kSign + sign;
  }
  std::string row(int row) const {
    std::string text;
    for (int column = 0; column < columns_; ++column) {
      const int cell = cells_[static_cast<size_t>(row * columns_ + column)];
      if (cell >= kSign)
        text += static_cast<char>(cell - kSign);
      else  // U+2800 + cell in UTF-8
        text += {static_cast<char>(0xe2), static_cast<char>(0xa0 + (cell >> 6)),
                 static_cast<char>(0x80 + (cell & 0x3f))};
    }
    return text;
  }

 private:
  static constexpr int kSign = 0x1000;
  int columns_, rows_;
  std::vector<int> cells_;
};

void draw_line(Dots& dots, const std::vector<CurvePoint>& points, const Range& steps, const Range& losses,
               int columns) {
  for (size_t i = 0; i < points.size(); ++i) {
    const auto& to = points[i];
    const auto& from = points[i ? i - 1 : 0];
    const double width = steps.share(to.step) - steps.share(from.step);
    const double height = losses.share(from.loss) - losses.share(to.loss);
    const int count =
        std::max(1, static_cast<int>((std::abs(width) + std::min(1.0, std::abs(height))) * columns * 4));
    for (int k = 0; k <= count; ++k) {
      const double t = static_cast<double>(k) / count;
      dots.set(steps.share(from.step) + t * width, losses.share(from.loss) - t * height);
    }
  }
}

std::string last_values(const Curve& curve) {
  std::string text;
  if (!curve.train.empty()) text += fmt::format("train {:.4f}", curve.train.back().loss);
  if (!curve.valid.empty())
    text += fmt::format("{}valid {:.4f} (o)", text.empty() ? "" : ", ", curve.valid.back().loss);
  return text;
}

}  // namespace

std::vector<CurvePoint> smoothed(const std::vector<CurvePoint>& points) {
  const double keep = 1 - 1 / std::max(1.0, static_cast<double>(points.size()) / 50);
  std::vector<CurvePoint> result = points;
  double sum = 0, weight = 0;
  for (auto& point : result) {
    sum = keep * sum + point.loss;
    weight = keep * weight + 1;
    point.loss = sum / weight;
  }
  return result;
}

std::string draw_curve(const Curve& curve, int columns, int rows) {
  if (curve.train.empty() && curve.valid.empty()) return "";
  const auto train = smoothed(curve.train);
  const Range steps = steps_of(curve), losses = losses_of(train, curve.valid);
  const int width = std::max(10, columns - 9);
  Dots dots(width, rows);
  draw_line(dots, train, steps, losses, width);
  for (const auto& point : curve.valid) dots.mark(steps.share(point.step), losses.share(point.loss), 'o');
  std::string text;
  for (int row = 0; row < rows; ++row) {
    const double loss = losses.high - (losses.high - losses.low) * row / std::max(1, rows - 1);
    const bool labelled = row % 4 == 0 || row == rows - 1;
    text += (labelled ? fmt::format("{:7.3f} ┤", loss) : std::string(8, ' ') + "│") + dots.row(row) + "\n";
  }
  const auto first = fmt::format("{:.0f}", steps.low), last = fmt::format("step {:.0f}", steps.high);
  text += fmt::format("{:9}{}{:>{}}\n", "", first, last,
                      std::max<size_t>(1, static_cast<size_t>(width) - first.size()));
  return text + fmt::format("{:9}{}: {}\n", "", curve.title.empty() ? "loss" : curve.title + ", loss",
                            last_values(curve));
}

}  // namespace weft
