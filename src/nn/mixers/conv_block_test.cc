#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>

#include <gtest/gtest.h>

#include "base/error.h"
#include "nn/mixer.h"

namespace weft {
namespace {

at::Tensor random(at::IntArrayRef sizes, uint64_t seed = 1) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  return at::randn(sizes, generator, at::TensorOptions().dtype(at::kDouble));
}

std::unique_ptr<SequenceMixer> mixer_of(const std::string& options, int64_t width) {
  auto mixer = make_mixer(Node::parse("{mixer: conv_block" + options + "}", "test"), Site{.width = width});
  mixer->initialize(3);
  mixer->to(at::kDouble);
  return mixer;
}

at::Tensor run(SequenceMixer& mixer, const at::Tensor& x) {
  State state = mixer.initial_state(x.size(0), x.options());
  return mixer.run(x, state, Context::at_positions(at::zeros({x.size(0)}, at::kLong), x.size(1)));
}

// The framework's own convolution, padded on both sides or on the left.
TEST(ConvBlock, IsAConvolution) {
  const at::NoGradGuard no_grad;
  for (const bool causal : {false, true}) {
    auto mixer = mixer_of(causal ? ", conv: 5, causal: true, relu: false, out_norm: none, bias: true"
                                 : ", conv: 5, relu: false, out_norm: none, bias: true",
                          3);
    const auto parameters = mixer->parameters();
    const auto weight = parameters[0].parameter->value.unflatten(1, {5, 3}).transpose(1, 2);  // [out, in, W]
    const auto x = random({2, 9, 3});
    const auto padded = at::constant_pad_nd(x.transpose(1, 2), {causal ? 4 : 2, causal ? 0 : 2});
    const auto expected = at::conv1d(padded, weight, parameters[1].parameter->value).transpose(1, 2);
    EXPECT_TRUE(at::allclose(run(*mixer, x), expected, 0, 1e-13));
  }
}

TEST(ConvBlock, ReluAndNormOverChannels) {
  const at::NoGradGuard no_grad;
  const auto x = random({2, 9, 4});
  const auto plain = run(*mixer_of(", relu: false, out_norm: none", 4), x);
  const auto positive = at::relu(plain);
  const auto mean = positive.mean(-1, true), spread = positive - mean;
  const auto expected = spread / ((spread * spread).mean(-1, true) + 1e-5).sqrt();
  EXPECT_TRUE(at::allclose(run(*mixer_of("", 4), x), expected, 0, 1e-12));
}

// Five centred convolutions of width 3 see five tokens ahead, causal ones none.
TEST(ConvBlock, LooksAheadByHalfItsWidth) {
  const at::NoGradGuard no_grad;
  for (const bool causal : {false, true}) {
    auto mixer = mixer_of(causal ? ", causal: true, relu: false" : ", relu: false", 4);
    const auto through = [&](at::Tensor x) {
      for (int64_t i = 0; i < 5; ++i) x = run(*mixer, x);
      return x[0][7];
    };
    const auto x = random({1, 16, 4});
    const auto expected = through(x);
    for (int64_t ahead = 1; ahead <= 7; ++ahead) {
      auto changed = x.clone();
      changed[0][7 + ahead].neg_();
      EXPECT_EQ(at::equal(through(changed), expected), causal || ahead > 5) << ahead << " tokens ahead";
    }
  }
}

TEST(ConvBlock, EvenWidthsAreCausalOnly) {
  EXPECT_THROW(mixer_of(", conv: 4", 4), InputError);
  EXPECT_NO_THROW(mixer_of(", conv: 4, causal: true", 4));
}

}  // namespace
}  // namespace weft
