#include "infer/mixing_matrix.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace weft {

at::Tensor mixing_jacobian(SequenceMixer& mixer, const MixerInput& input, int64_t limit) {
  const auto& h = input.h;
  require(h.dim() == 3 && h.size(0) == 1, "matrix: expected one row [1, T, D] of input, found {}",
          fmt::join(h.sizes(), " x "));
  const int64_t tokens = h.size(1), width = h.size(2);
  require(tokens * width * tokens * width <= limit,
          "matrix: {} tokens of width {} have {} derivatives, more than {}; give fewer tokens", tokens, width,
          tokens * width * tokens * width, limit);
  // Row i of the batch asks for channel i of output t, so that one backward pass gives all channels of it.
  const auto rows = at::zeros({width}, at::kLong);
  auto context = input.context.select(rows);
  for (auto& [port, strand] : context.imports)
    for (auto& [name, tensor] : strand.tensors) tensor = tensor.detach();
  context.keep_state = false;
  auto jacobian = at::zeros({tokens, width, tokens, width}, h.options());
  for (int64_t t = 0; t < tokens; ++t) {
    const at::AutoGradMode with_gradients(true);
    auto x = h.detach().expand({width, tokens, width}).contiguous().requires_grad_(true);
    auto state = mixer.initial_state(width, h.options());
    mixer.run(x, state, context).select(1, t).diagonal().sum().backward();
    if (x.grad().defined()) jacobian.select(0, t).copy_(x.grad());
  }
  return jacobian;
}

at::Tensor mixing_strength(const at::Tensor& jacobian) { return jacobian.square().sum({1, 3}).sqrt(); }

at::Tensor mixing_of_channel(const at::Tensor& jacobian, int64_t channel) {
  require(channel >= 0 && channel < jacobian.size(1), "matrix: channel {} of {}", channel, jacobian.size(1));
  return jacobian.select(3, channel).select(1, channel);
}

std::string matrix_csv(const at::Tensor& matrix) {
  const auto values = matrix.to(at::kDouble).contiguous();
  const auto* at = values.const_data_ptr<double>();
  std::string text;
  for (int64_t row = 0; row < values.size(0); ++row)
    for (int64_t column = 0; column < values.size(1); ++column)
      text += fmt::format("{:.9g}{}", *at++, column + 1 < values.size(1) ? "," : "\n");
  return text;
}

std::string matrix_svg(const at::Tensor& matrix, const std::string& title) {
  const auto values = matrix.to(at::kDouble).contiguous();
  const int64_t rows = values.size(0), columns = values.size(1);
  const double cell = std::max(2.0, 480.0 / static_cast<double>(std::max<int64_t>(columns, 1)));
  const double largest = std::max(values.abs().max().item<double>(), 1e-300);
  const double width = cell * static_cast<double>(columns) + 20,
               height = cell * static_cast<double>(rows) + 60;
  std::string name;
  for (const char c : title) name += c == '<' ? "&lt;" : c == '&' ? "&amp;" : std::string(1, c);
  auto svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0:g} {1:g}\" width=\"{0:g}\" "
      "height=\"{1:g}\" "
      "font-family=\"sans-serif\" font-size=\"12\" shape-rendering=\"crispEdges\">\n"
      "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"10\" y=\"18\">{2}</text>\n"
      "<text x=\"10\" y=\"{3:g}\" fill=\"#555\">rows: outputs, columns: inputs; largest {4:.3g}</text>\n"
      "<rect x=\"10\" y=\"30\" width=\"{5:g}\" height=\"{6:g}\" fill=\"none\" stroke=\"#bbb\"/>\n",
      width, height, name, height - 8, largest, width - 20, height - 60);
  const auto* at = values.const_data_ptr<double>();
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t column = 0; column < columns; ++column) {
      const double value = *at++ / largest;
      const int pale = static_cast<int>(std::lround(255 * (1 - std::sqrt(std::abs(value)))));
      if (pale >= 255) continue;
      svg += fmt::format(
          "<rect x=\"{:.2f}\" y=\"{:.2f}\" width=\"{:.2f}\" height=\"{:.2f}\" fill=\"#{}\"/>\n",
          10 + cell * static_cast<double>(column), 30 + cell * static_cast<double>(row), cell, cell,
          value > 0 ? fmt::format("{0:02x}{0:02x}ff", pale) : fmt::format("ff{0:02x}{0:02x}", pale));
    }
  return svg + "</svg>\n";
}

}  // namespace weft
