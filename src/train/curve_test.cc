#include "train/curve.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

namespace weft {
namespace {

Curve falling() {
  Curve curve{.title = "a < b", .train = {}, .valid = {}};
  for (int i = 0; i < 200; ++i)
    curve.train.push_back({static_cast<double>(i + 1), 1 + 4 * std::exp(-i / 40.0)});
  for (int i = 50; i <= 200; i += 50)
    curve.valid.push_back({static_cast<double>(i), 1.2 + 4 * std::exp(-i / 40.0)});
  return curve;
}

int lines(const std::string& text) { return static_cast<int>(std::count(text.begin(), text.end(), '\n')); }

TEST(Curve, TerminalPlotHasItsSizeAxesAndValues) {
  const auto text = draw_curve(falling(), 60, 8);
  EXPECT_EQ(lines(text), 10);
  EXPECT_NE(text.find("step 200"), std::string::npos) << text;
  EXPECT_NE(text.find("train 1.02"), std::string::npos) << text;
  EXPECT_NE(text.find("valid 1.2270 (o)"), std::string::npos) << text;
  // The curve falls: its dots (empty cells are U+2800) begin in the first row and end in the last.
  const auto first = text.substr(0, text.find('\n'));
  EXPECT_NE(first.find("┤\xe2\xa0"), std::string::npos);
  EXPECT_NE(first.substr(first.find("┤") + 3, 3), "\u2800") << text;
}

TEST(Curve, NothingAndOnePointAreDrawnToo) {
  EXPECT_EQ(draw_curve({}), "");
  EXPECT_EQ(lines(draw_curve({.title = "", .train = {{1, 2.5}}, .valid = {}}, 40, 5)), 7);
  EXPECT_NE(curve_svg({}).find("</svg>"), std::string::npos);
  const auto one = curve_svg({.title = "", .train = {{1, 2.5}}, .valid = {}});
  EXPECT_EQ(one.find("nan"), std::string::npos) << one;
  EXPECT_EQ(one.find("inf"), std::string::npos) << one;
}

TEST(Curve, SvgHasBothLinesInsideThePictureAndEscapesTheTitle) {
  const auto svg = curve_svg(falling());
  size_t count = 0;
  for (size_t at = svg.find("<polyline"); at != std::string::npos; at = svg.find("<polyline", at + 1))
    ++count;
  EXPECT_EQ(count, 3u);
  EXPECT_NE(svg.find("a &lt; b"), std::string::npos);
  EXPECT_EQ(svg.find("nan"), std::string::npos);
}

TEST(Curve, SmoothingKeepsConstantsAndFollowsTrends) {
  std::vector<CurvePoint> points(1000, CurvePoint{0, 3});
  for (const auto& point : smoothed(points)) EXPECT_NEAR(point.loss, 3, 1e-12);
  EXPECT_NEAR(smoothed(falling().train).back().loss, falling().train.back().loss, 0.05);
}

}  // namespace
}  // namespace weft
