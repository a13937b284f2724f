#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "train/curve.h"

namespace weft {
namespace {

constexpr double kWidth = 800, kHeight = 450, kLeft = 64, kRight = 24, kTop = 44, kBottom = 48;

// Steps of 1, 2 or 5 times a power of ten: about `wanted` marks between low and high.
std::vector<double> marks(double low, double high, int wanted) {
  const double rough = (high - low) / wanted, power = std::pow(10, std::floor(std::log10(rough)));
  const double unit = rough / power;
  const double step = power * (unit < 1.5 ? 1 : unit < 3.5 ? 2 : unit < 7.5 ? 5 : 10);
  std::vector<double> values;
  for (double value = std::ceil(low / step) * step; value <= high + step * 1e-9; value += step)
    values.push_back(value);
  return values;
}

struct Axes {
  double step_low, step_high, loss_low, loss_high;
  double x(double step) const {
    return kLeft + (kWidth - kLeft - kRight) * (step - step_low) / (step_high - step_low);
  }
  double y(double loss) const {
    const double share = std::clamp((loss - loss_low) / (loss_high - loss_low), 0.0, 1.0);
    return kHeight - kBottom - (kHeight - kTop - kBottom) * share;
  }
};

Axes axes_of(const Curve& curve) {
  std::vector<double> losses;
  Axes axes{INFINITY, -INFINITY, 0, 1};
  for (const auto* points : {&curve.train, &curve.valid})
    for (const auto& point : *points) {
      losses.push_back(point.loss);
      axes.step_low = std::min(axes.step_low, point.step);
      axes.step_high = std::max(axes.step_high, point.step);
    }
  if (losses.empty()) return {0, 1, 0, 1};
  std::sort(losses.begin(), losses.end());
  const double high = losses[static_cast<size_t>(static_cast<double>(losses.size() - 1) * 0.98)];
  const double room = std::max((high - losses.front()) * 0.05, 1e-6);
  axes.loss_low = losses.front() - room;
  axes.loss_high = high + room;
  if (axes.step_high <= axes.step_low) axes.step_high = axes.step_low + 1;
  return axes;
}

std::string polyline(const std::vector<CurvePoint>& points, const Axes& axes, const char* style) {
  if (points.empty()) return "";
  std::string path;
  // More points than pixels only make the file large.
  const size_t stride = std::max<size_t>(1, points.size() / 2000);
  for (size_t i = 0; i < points.size(); i += stride)
    path += fmt::format("{:.1f},{:.1f} ", axes.x(points[i].step), axes.y(points[i].loss));
  path += fmt::format("{:.1f},{:.1f}", axes.x(points.back().step), axes.y(points.back().loss));
  return fmt::format("<polyline fill=\"none\" {} points=\"{}\"/>\n", style, path);
}

std::string text(double x, double y, const char* anchor, const std::string& content, const char* more = "") {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\"{}>{}</text>\n", x, y, anchor, more,
                     content);
}

std::string grid(const Axes& axes) {
  std::string svg;
  for (const double loss : marks(axes.loss_low, axes.loss_high, 6)) {
    svg += fmt::format("<line x1=\"{}\" x2=\"{}\" y1=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"#ddd\"/>\n", kLeft,
                       kWidth - kRight, axes.y(loss), axes.y(loss));
    svg += text(kLeft - 8, axes.y(loss) + 4, "end", fmt::format("{:.4g}", loss));
  }
  for (const double step : marks(axes.step_low, axes.step_high, 8)) {
    svg += fmt::format("<line y1=\"{}\" y2=\"{}\" x1=\"{:.1f}\" x2=\"{:.1f}\" stroke=\"#eee\"/>\n", kTop,
                       kHeight - kBottom, axes.x(step), axes.x(step));
    svg += text(axes.x(step), kHeight - kBottom + 18, "middle", fmt::format("{:g}", step));
  }
  return svg;
}

std::string escaped(const std::string& title) {
  std::string result;
  for (const char c : title) result += c == '<' ? "&lt;" : c == '&' ? "&amp;" : std::string(1, c);
  return result;
}

}  // namespace

std::string curve_svg(const Curve& curve) {
  const Axes axes = axes_of(curve);
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" "
      "font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"{0}\" height=\"{1}\" fill=\"white\"/>\n",
      kWidth, kHeight);
  svg += grid(axes);
  svg += text(kLeft, 26, "start", escaped(curve.title), " font-size=\"16\"");
  svg += text((kLeft + kWidth - kRight) / 2, kHeight - 10, "middle", "step");
  svg += text(18, (kTop + kHeight - kBottom) / 2, "middle", "loss, nats per token",
              fmt::format(" transform=\"rotate(-90 18 {})\"", (kTop + kHeight - kBottom) / 2).c_str());
  svg += polyline(curve.train, axes, "stroke=\"#9ecae1\" stroke-width=\"0.8\"");
  svg += polyline(smoothed(curve.train), axes, "stroke=\"#08519c\" stroke-width=\"2\"");
  svg += polyline(curve.valid, axes, "stroke=\"#d94801\" stroke-width=\"2\"");
  for (const auto& point : curve.valid)
    svg += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\" fill=\"#d94801\"/>\n", axes.x(point.step),
                       axes.y(point.loss));
  svg += text(kWidth - kRight, 26, "end",
              "<tspan fill=\"#08519c\">train</tspan>" +
                  std::string(curve.valid.empty() ? "" : " <tspan fill=\"#d94801\">validation</tspan>"));
  return svg + "</svg>\n";
}

}  // namespace weft
