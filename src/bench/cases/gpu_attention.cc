// Attention with masks at shapes that fill a GPU.
#include <algorithm>
#include <functional>

#include "bench/cases/gpu.h"
#include "ops/attention/attention.h"

namespace weft::bench {
namespace {

struct MaskRow {
  const char *name, *external;
  std::function<ops::Mask(int64_t batch, int64_t tokens)> mask;
};

OpCase attention_case(const MaskRow& row, const Shape& shape, const Maker& make) {
  const auto list = [make](const Shape& s) {
    const std::vector<int64_t> rows{s.batch, s.tokens, s.heads, s.width};
    return Tensors{make.normal(rows), make.normal(rows), make.normal(rows)};
  };
  const Shape checked{1, 320, 2, shape.width};
  const auto large = ops::on_device(row.mask(shape.batch, shape.tokens), make.device),
             small = ops::on_device(row.mask(checked.batch, checked.tokens), make.device),
             one = ops::on_device(row.mask(1, shape.tokens), make.device);
  const auto mask_for = [=](const Tensors& x) { return x[0].size(1) == shape.tokens ? large : small; };
  const auto seen = ops::reference::visible_keys(one, 1, shape.tokens, shape.tokens, make.device);
  OpCase result;
  result.op = std::string("attention ") + row.name;
  result.shape = shape_text(shape);
  result.external = shape.width == 128 && shape.batch != 1 ? row.external : "";
  result.weft = [=](const Tensors& x) { return Tensors{ops::attention(x[0], x[1], x[2], mask_for(x)).out}; };
  result.reference = [=](const Tensors& x) {
    return Tensors{ops::reference::attention(x[0], x[1], x[2], mask_for(x)).out};
  };
  result.inputs = [=] { return list(shape); };
  result.check_inputs = [=] { return list(checked); };
  result.bound = result.gradient_bound = make.dtype == at::kFloat ? 1e-5 : 2e-2;
  result.flops =
      4.0 * static_cast<double>(shape.batch * shape.heads * shape.width) * seen.sum().item<double>();
  result.backward_factor = 2.5;
  return result;
}

}  // namespace

std::vector<OpCase> gpu_attention_op_cases(at::ScalarType dtype, at::Device device) {
  const Maker make{dtype, device};
  const MaskRow causal{"causal", "gpu_causal", [](int64_t, int64_t) { return ops::Mask{}; }};
  const MaskRow window{"window 512", "gpu_window", [](int64_t, int64_t tokens) {
                         return ops::Mask{.window = std::min<int64_t>(512, tokens / 3)};
                       }};
  const MaskRow tidar{"TiDAR, block 16", "gpu_tidar", [](int64_t batch, int64_t tokens) {
                        return ops::tidar_training_mask(batch, tokens / 2, 16);
                      }};
  std::vector<OpCase> cases{attention_case(causal, {8, 2048, 16, 128}, make)};
  for (const auto& [heads, width] : {std::pair<int64_t, int64_t>{16, 128}, {32, 64}, {8, 256}}) {
    cases.push_back(attention_case(tidar, {2, 4096, heads, width}, make));
    cases.push_back(attention_case(window, {2, 4096, heads, width}, make));
  }
  cases.push_back(attention_case(window, {1, 16384, 16, 128}, make));
  for (auto& one : gpu_decode_op_cases(dtype, device)) cases.push_back(std::move(one));
  return cases;
}

}  // namespace weft::bench
