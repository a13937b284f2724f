#include "base/progress.h"

#include <gtest/gtest.h>

#include <vector>

namespace weft {
namespace {

TEST(LineOutput, RedrawsTheBottomLineOnATerminal) {
  std::string shown;
  LineOutput out([&](std::string_view text) { shown += text; }, LineOutput::Style::live);
  out.update("step 1\nhidden");
  out.update("step 2");
  out.line("saved");
  EXPECT_EQ(shown, "\rstep 1\x1b[K\rstep 2\x1b[K\r\x1b[Ksaved\n");
}

TEST(LineOutput, PlainKeepsOnlyLinesAndQuietNothing) {
  for (const auto style : {LineOutput::Style::plain, LineOutput::Style::quiet}) {
    std::string shown;
    LineOutput out([&](std::string_view text) { shown += text; }, style);
    out.update("step 1");
    out.line("saved");
    out.clear();
    EXPECT_EQ(shown, style == LineOutput::Style::plain ? "saved\n" : "");
  }
}

TEST(LineOutput, APipeIsPlain) {
  std::FILE* file = std::tmpfile();
  EXPECT_EQ(LineOutput::to(file).style(), LineOutput::Style::plain);
  EXPECT_EQ(LineOutput::to(file, true).style(), LineOutput::Style::quiet);
  std::fclose(file);
}

TEST(Progress, SummarySaysAmountAndUnit) {
  std::string shown;
  LineOutput out([&](std::string_view text) { shown += text; }, LineOutput::Style::plain);
  Progress progress(out, "tokenize", 5000, "bytes");
  progress.at(5000);
  EXPECT_EQ(shown, "");  // short work stays silent
  progress.finish(true);
  EXPECT_NE(shown.find("tokenize: 5.00K bytes in 0:00"), std::string::npos) << shown;
}

TEST(ResidentBytes, IsPlausible) {
  const std::vector<char> block(1 << 24, 1);
  EXPECT_GT(resident_bytes(), static_cast<int64_t>(block.size()));
}

}  // namespace
}  // namespace weft
