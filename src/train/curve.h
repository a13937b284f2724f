// The loss curve of a run, for a terminal and as SVG.
#pragma once

#include <string>
#include <vector>

namespace weft {

struct CurvePoint {
  double step = 0, loss = 0;
};

struct Curve {
  std::string title;
  std::vector<CurvePoint> train, valid;  // by step
};

// Lines of Braille dots, axes and the last values: about `columns` wide and `rows` + 2 high, without colours.
// "" when there are no points.
std::string draw_curve(const Curve& curve, int columns = 72, int rows = 14);

// A stand-alone SVG with axes, grid, the training loss (thin: every point; thick: smoothed) and the
// validation loss.
std::string curve_svg(const Curve& curve);

// Exponential moving average of the losses that gives point i the weight of about the last n / 50 points.
std::vector<CurvePoint> smoothed(const std::vector<CurvePoint>& points);

}  // namespace weft
