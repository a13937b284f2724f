#include <gtest/gtest.h>

#include "base/error.h"
#include "nn/channel.h"

namespace weft {
namespace {

std::unique_ptr<ChannelMixer> make(const std::string& text) {
  return make_channel_mixer(Node::parse(text, "moe"), Site{.width = 6, .where = "moe: layers[0]"});
}

std::string complaint(const std::string& text) {
  try {
    make(text);
  } catch (const InputError& error) {
    return error.what();
  }
  return "";
}

TEST(MixtureOfExperts, CountsTheWeightsThatOneTokenUses) {
  const auto all = make("{moe: {hidden: 5, experts: 8, top_k: 2, shared: 7}}");
  const int64_t router = 8 * 6, expert = 3 * 5 * 6, shared = 3 * 7 * 6;
  EXPECT_EQ(all->parameter_count(), router + 8 * expert + shared);
  EXPECT_EQ(all->matrix_weights(), router + 2 * expert + shared);
}

TEST(MixtureOfExperts, ErrorsNameTheLayer) {
  EXPECT_EQ(complaint("{moe: {experts: 6, groups: 4}}"),
            "moe: layers[0]: 6 experts do not fall into 4 equal groups");
  EXPECT_EQ(complaint("{moe: {experts: 6, groups: 3, top_groups: 1, top_k: 3}}"),
            "moe: layers[0]: top_k 3 of 2 experts in the groups that count");
  EXPECT_EQ(complaint("{moe: {experts: 2, top_k: 3}}"), "moe: layers[0]: top_k 3 of 2 experts");
  EXPECT_EQ(complaint("{moe: {shared_gate: true}}"),
            "moe: layers[0]: shared_gate needs a shared MLP: give its width as `shared`");
}

}  // namespace
}  // namespace weft
