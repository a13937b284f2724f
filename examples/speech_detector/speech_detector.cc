// Where somebody speaks in a WAV file: Silero VAD v6.2 (github.com/snakers4/silero-vad, MIT), four convolutions over a
// short-time spectrum and one LSTM cell, on weft's operators and its safetensors reader. The file is read as a stream,
// 512 samples at a time; a pipe will do.
//
//   speech_detector WEIGHTS.safetensors FILE.wav [--probabilities OUT.f32]
//
// For each block of 512 samples at 16 kHz, with the 64 samples before it:
//   frames of the block, padded by reflection, through a convolution that is a Fourier transform: magnitudes [129, 4]
//   conv 129 -> 128, 128 -> 64 (stride 2), 64 -> 64 (stride 2), 64 -> 128, each width 3, then ReLU
//   h, c = LSTM(x, h, c);   p = sigmoid(w ReLU(h) + b)
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <fmt/ranges.h>

#include <cstdio>

#include "base/error.h"
#include "base/files.h"
#include "io/safetensors.h"
#include "ops/rnn/rnn.h"
#include "wav_stream.h"

namespace {

constexpr int64_t kRate = 16000, kBlock = 512, kContext = 64, kHidden = 128, kBins = 129;

class SpeechDetector {
 public:
  explicit SpeechDetector(const std::string& weights) : file_(weights) {
    // weft's LSTM has the gates i, f, z, o, each with a matrix of its own; the file stacks i, f, g, o.
    recurrent_ = tensor("lstm_cell.weight_hh", {4 * kHidden, kHidden}).view({4, 1, kHidden, kHidden});
    input_ = tensor("lstm_cell.weight_ih", {4 * kHidden, kHidden});
    bias_ = (tensor("lstm_cell.bias_ih", {4 * kHidden}) + tensor("lstm_cell.bias_hh", {4 * kHidden}))
                .view({4, 1, kHidden});
  }

  // The probability that somebody speaks in these 512 samples, which follow those of the call before.
  float step(const std::vector<float>& samples) {
    const auto block = at::tensor(samples).view({1, 1, kBlock});
    const auto heard = at::reflection_pad1d(at::cat({context_, block}, 2), {0, kContext});
    context_ = block.slice(2, kBlock - kContext);
    const auto spectrum = at::conv1d(heard, tensor("stft_conv.weight", {2 * kBins, 1, 256}), {}, 128);
    auto x = (spectrum.slice(1, 0, kBins).square() + spectrum.slice(1, kBins).square()).sqrt();
    x = conv("conv1", x, kBins, 128, 1);
    x = conv("conv2", x, 128, 64, 2);
    x = conv("conv3", x, 64, 64, 2);
    x = conv("conv4", x, 64, kHidden, 1);  // [1, 128, 1]
    const auto cell = weft::ops::rnn({.cell = "lstm",
                                      .wx = at::linear(x.transpose(1, 2), input_).view({1, 1, 4, 1, kHidden}),
                                      .recurrent = recurrent_,
                                      .bias = bias_,
                                      .initial_state = state_});
    state_ = cell.state;
    const auto logit = at::linear(at::relu(cell.h.flatten()),
                                  tensor("final_conv.weight", {1, kHidden, 1}).view({1, kHidden}),
                                  tensor("final_conv.bias", {1}));
    return at::sigmoid(logit).item<float>();
  }

 private:
  at::Tensor tensor(const std::string& name, at::IntArrayRef sizes) const {
    const auto found = file_.view(name);
    weft::require(found.sizes() == sizes && found.scalar_type() == at::kFloat,
                  "{}: tensor '{}' is [{}] of {}, expected [{}] of Float", file_.path(), name,
                  fmt::join(found.sizes(), ", "), c10::toString(found.scalar_type()), fmt::join(sizes, ", "));
    return found;
  }
  at::Tensor conv(const std::string& name, const at::Tensor& x, int64_t in, int64_t out,
                  int64_t stride) const {
    const int64_t pad = 1;
    return at::relu(
        at::conv1d(x, tensor(name + ".weight", {out, in, 3}), tensor(name + ".bias", {out}), stride, pad));
  }

  weft::SafeTensors file_;
  at::Tensor recurrent_, input_, bias_;
  at::Tensor context_ = at::zeros({1, 1, kContext});
  at::Tensor state_ = at::zeros({2, 1, 1, kHidden});  // h, c
};

// Stretches of speech, printed as soon as they end.
class Stretches {
 public:
  void push(int64_t block, bool speech) {
    if (speech && begin_ < 0) begin_ = block;
    if (!speech && begin_ >= 0) {
      std::printf("%7.3f s to %7.3f s\n", seconds(begin_), seconds(block));
      std::fflush(stdout);
      begin_ = -1;
    }
  }

 private:
  static double seconds(int64_t block) { return static_cast<double>(block * kBlock) / kRate; }
  int64_t begin_ = -1;
};

int run(const std::string& weights, const std::string& wav, const std::string& out) {
  const at::NoGradGuard no_grad;
  SpeechDetector detector(weights);
  WavStream stream(wav, kRate);
  Stretches stretches;
  std::vector<float> samples(kBlock), probabilities;
  while (stream.read(samples) > 0) {
    probabilities.push_back(detector.step(samples));
    stretches.push(static_cast<int64_t>(probabilities.size()) - 1, probabilities.back() >= 0.5f);
  }
  stretches.push(static_cast<int64_t>(probabilities.size()), false);
  if (!out.empty())
    weft::write_atomically(out, std::string_view(reinterpret_cast<const char*>(probabilities.data()),
                                                 probabilities.size() * sizeof(float)));
  return 0;
}

}  // namespace

int main(int count, char** words) {
  const bool to_file = count == 5 && std::string(words[3]) == "--probabilities";
  if (count != 3 && !to_file) {
    std::fprintf(stderr, "usage: speech_detector WEIGHTS.safetensors FILE.wav [--probabilities OUT.f32]\n");
    return 2;
  }
  try {
    return run(words[1], words[2], to_file ? words[4] : "");
  } catch (const weft::Error& error) {
    std::fprintf(stderr, "speech_detector: error: %s\n", error.what());
    return 1;
  }
}
