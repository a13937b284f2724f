#include "infer/mixing_matrix.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "nn/model.h"

namespace weft {
namespace {

std::unique_ptr<SequenceMixer> mixer_of(const std::string& text) {
  auto mixer = make_mixer(Node::parse(text, "test"), {.width = 6});
  mixer->initialize(3);
  mixer->to(at::kDouble);
  return mixer;
}

MixerInput input_of(int64_t tokens) {
  MixerInput input{at::randn({1, tokens, 6}, at::kDouble),
                   Context::at_positions(at::zeros({1}, at::kLong), tokens)};
  input.context.dtype = at::kDouble;
  return input;
}

at::Tensor run(SequenceMixer& mixer, const MixerInput& input) {
  auto state = mixer.initial_state(1, input.h.options());
  return mixer.run(input.h, state, input.context);
}

// The matrix of a mixer that is linear in its input gives its output back.
TEST(MixingMatrix, OfALinearMixerIsTheMixer) {
  const auto mixer = mixer_of("{mixer: s4d, states: 4, activation: none}");
  const auto input = input_of(7);
  const auto jacobian = mixing_jacobian(*mixer, input);
  const auto y = jacobian.flatten(2).matmul(input.h.flatten()).unsqueeze(0);
  EXPECT_TRUE(y.allclose(run(*mixer, input), 1e-9, 1e-10));
}

TEST(MixingMatrix, IsTheDerivative) {
  const auto mixer = mixer_of("{mixer: attention, heads: 2, window: 3, rope: 0}");
  auto input = input_of(6);
  const auto jacobian = mixing_jacobian(*mixer, input);
  const auto before = run(*mixer, input);
  const auto change = at::randn_like(input.h) * 1e-6;
  input.h = input.h + change;
  const auto predicted = before + jacobian.flatten(2).matmul(change.flatten()).unsqueeze(0);
  EXPECT_TRUE(predicted.allclose(run(*mixer, input), 0, 1e-10));
  const auto strength = mixing_strength(jacobian);
  for (int64_t t = 0; t < 6; ++t)
    for (int64_t s = 0; s < 6; ++s)
      EXPECT_EQ(strength[t][s].item<double>() > 0, s <= t && t - s < 3) << t << " " << s;
}

// Also behind other layers, and with what those export.
TEST(MixingMatrix, OfALayerOfAModel) {
  const auto options = read_options<ModelOptions>(
      Node::parse("{width: 8, vocab: 11, layers: [{mixer: attention, heads: 2, export: {kv: a}}, "
                  "{mixer: cross_attention, heads: 2, import: {kv: a}}, {ffn: {swiglu: 8}}]}",
                  "test"),
      "model");
  Model model(options);
  model.initialize(1);
  model.to(at::kDouble);
  model.set_compute_dtype(at::kDouble);
  const auto ids = at::randint(11, {1, 5}, at::kLong);
  const auto input = model.mixer_input(ids, 1);
  const auto strength = mixing_strength(mixing_jacobian(*model.stack().layers()[1]->mixer(), input));
  EXPECT_EQ(strength.sizes(), (std::vector<int64_t>{5, 5}));
  EXPECT_GT(strength.diagonal().slice(0, 1).min().item<double>(), 0) << "queries come from the token itself";
  EXPECT_EQ((strength - strength.diagonal().diag()).abs().max().item<double>(), 0)
      << "keys come from another layer";
  EXPECT_THROW(model.mixer_input(ids, 2), InputError);
  EXPECT_THROW(model.mixer_input(ids, 3), InputError);
  EXPECT_THROW(model.mixer_input(ids, -1), InputError);
}

TEST(MixingMatrix, WritesNumbersAndPictures) {
  const auto matrix = at::tensor({1.0, -0.5, 0.0, 2.0}, at::kDouble).view({2, 2});
  EXPECT_EQ(matrix_csv(matrix), "1,-0.5\n0,2\n");
  const auto svg = matrix_svg(matrix, "a < b");
  EXPECT_NE(svg.find("a &lt; b"), std::string::npos);
  EXPECT_NE(svg.find("fill=\"#0000ff\""), std::string::npos) << "the largest is plain blue";
  EXPECT_NE(svg.find("fill=\"#ff8080\""), std::string::npos) << "-0.5 of 2 is half red";
  const auto mixer = mixer_of("{mixer: short_conv}");
  EXPECT_THROW(mixing_jacobian(*mixer, input_of(7), 100), InputError);
}

}  // namespace
}  // namespace weft
