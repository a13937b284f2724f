#include "nn/pattern.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "nn/model.h"

namespace weft {
namespace {

std::vector<Node> expand(const std::string& text) { return expand_pattern(Node::parse(text, "test.yaml")); }

template <class F>
std::string message_of(F&& f) {
  try {
    f();
  } catch (const InputError& error) {
    return error.what();
  }
  return "no error";
}

void expect_error(const std::string& layers, const std::vector<std::string>& parts) {
  const auto message = message_of([&] { LayerStack(Node::parse(layers, "test.yaml"), LayerOptions{}, 16); });
  for (const auto& part : parts)
    EXPECT_NE(message.find(part), std::string::npos) << "'" << part << "' in: " << message;
}

TEST(Pattern, RepeatsNestAndKeepTheirOrder) {
  const auto layers = expand(
      "- repeat: 2\n  pattern:\n  - {repeat: 2, pattern: [{mixer: a}]}\n  - {mixer: b}\n- {mixer: c}\n");
  std::string order;
  for (const auto& layer : layers) order += layer.at("mixer").as_string();
  EXPECT_EQ(order, "aabaabc");
}

TEST(Pattern, OverridesReplaceFieldsOfChosenLayers) {
  const auto layers = expand(
      "- {repeat: 3, pattern: [{mixer: a, window: 4}], override: [{layers: [0, 2], set: {window: 0, sinks: "
      "1}}]}\n");
  EXPECT_EQ(layers[0].at("window").as_int(), 0);
  EXPECT_EQ(layers[1].at("window").as_int(), 4);
  EXPECT_EQ(layers[2].at("sinks").as_int(), 1);
}

TEST(Pattern, ErrorsNameFileLineAndField) {
  EXPECT_NE(
      message_of([] { expand("- {repeat: 0, pattern: [{mixer: a}]}"); }).find("test.yaml:1: [0].repeat"),
      std::string::npos);
  EXPECT_NE(message_of([] {
              expand("- {repeat: 2, pattern: [{mixer: a}], override: [{layers: [2], set: {}}]}");
            }).find("layer 2 does not exist; the group has 2"),
            std::string::npos);
  EXPECT_NE(
      message_of([] { expand("- {repat: 2, pattern: [{mixer: a}]}"); }).find("[0].repat: unknown field"),
      std::string::npos);
}

TEST(Layers, ErrorsSayWhatToDo) {
  expect_error("- {mixer: atention}", {"test.yaml:1: [0].mixer", "did you mean 'attention'?"});
  expect_error("- {mixer: attention, head: 2}", {"[0].head: unknown field, did you mean 'heads'?"});
  expect_error("- {mixer: attention, heads: 3}",
               {"[0]", "heads 3 does not divide width 16", "give head_dim"});
  expect_error("- {mixer: attention, heads: two}", {"[0].heads: expected a whole number, found 'two'"});
  expect_error("- {mixer: attention, heads: 4, kv_heads: 3}", {"heads 4 is not a multiple of kv_heads 3"});
  expect_error("- {mixer: attention, heads: 2, norm_placement: before}",
               {"must be one of pre, post, branch, sandwich"});
  expect_error("- {mixer: attention, heads: 2, post_norm_offset: 0.2}",
               {"post_norm_offset 0.2 needs norm: rms_zero_centered"});
  expect_error("- {mixer: attention, heads: 2, qk_norm: true, qk_norm_kind: layer, qk_norm_over: each}",
               {"expected rms or rms_zero_centered"});
  expect_error("- {mixer: mamba2, heads: 2, head_dim: 8, map_norm: rms}", {"map_norm rms needs a dt_rank"});
  expect_error("- {mixer: gmu, memory: 16}", {"needs import: {memory: NAME}"});
  expect_error(
      "- {mixer: mamba, export: {memory: m}}\n- {mixer: gmu, import: {memory: n}}",
      {"test.yaml:2: [1].import", "imports 'n', but no layer above exports it", "exported so far: m"});
  expect_error("- {mixer: mamba, export: {kv: m}}", {"does not export 'kv'; it exports memory"});
  expect_error("- {mixer: attention, window: 4, export: {kv: m}}",
               {"does not export 'kv'; it exports nothing"});
  expect_error("- {ffn: {swigloo: 8}}", {"did you mean 'swiglu'?"});
  expect_error("- {norm: rms}", {"a layer needs a mixer, a channel mixer (ffn), or both"});
}

}  // namespace
}  // namespace weft
