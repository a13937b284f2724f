#include "infer/stop_strings.h"

#include <gtest/gtest.h>

namespace weft {
namespace {

TEST(StopStrings, CutsBeforeTheStopAndDropsTheRest) {
  StopStrings stop({"END"});
  EXPECT_EQ(stop.push("one END two"), "one ");
  EXPECT_EQ(stop.match(), "END");
  EXPECT_EQ(stop.push("more"), "");
  EXPECT_EQ(stop.finish(), "");
}

TEST(StopStrings, SpansPieces) {
  StopStrings stop({"END"});
  EXPECT_EQ(stop.push("one E"), "one ");
  EXPECT_EQ(stop.push("N"), "");
  EXPECT_FALSE(stop.matched());
  EXPECT_EQ(stop.push("D!"), "");
  EXPECT_TRUE(stop.matched());
}

TEST(StopStrings, ReleasesWhatWasNoStop) {
  StopStrings stop({"END"});
  EXPECT_EQ(stop.push("EN"), "");
  EXPECT_EQ(stop.push("EM"), "ENEM");
  EXPECT_EQ(stop.push("E"), "");
  EXPECT_EQ(stop.finish(), "E");
}

TEST(StopStrings, KeepsTheLongestPossibleBeginning) {
  StopStrings stop({"aab", "b!"});
  EXPECT_EQ(stop.push("aaa"), "a");
  EXPECT_EQ(stop.push("b"), "");
  EXPECT_EQ(stop.match(), "aab");
}

TEST(StopStrings, TheFirstInTheTextWins) {
  StopStrings stop({"late", "early"});
  EXPECT_EQ(stop.push("x early late"), "x ");
  EXPECT_EQ(stop.match(), "early");
}

TEST(StopStrings, WithoutStringsTextPasses) {
  StopStrings stop({"", ""});
  EXPECT_EQ(stop.push("anything"), "anything");
  EXPECT_FALSE(stop.matched());
}

}  // namespace
}  // namespace weft
