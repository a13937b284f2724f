#include "nn/mixers/rwkv.h"

#include <algorithm>
#include <cmath>

#include "ops/norm/norm.h"

namespace weft {

TokenShift token_shift(const at::Tensor& x, const at::Tensor& last, const at::Tensor& starts) {
  const int64_t tokens = x.size(1);
  const auto all = at::cat({last, x}, 1);  // [B, T + 1, D]
  auto before = all.narrow(1, 0, tokens);
  if (starts.defined()) before = before.masked_fill(starts.unsqueeze(-1), 0);
  return {before - x, all.narrow(1, tokens, 1).clone()};
}

at::Tensor mix_tokens(const at::Tensor& x, const TokenShift& shift, const at::Tensor& mu, bool current) {
  const auto share = mu.to(x.scalar_type());
  return x + shift.delta * (current ? 1 - share : share);
}

at::Tensor head_norm(const at::Tensor& y, const at::Tensor& weight, const at::Tensor& bias, double eps) {
  const auto normed = ops::layer_norm(y, {}, {}, eps).flatten(2) * weight.to(y.scalar_type());
  return bias.defined() ? normed + bias.to(y.scalar_type()) : normed;
}

Height::Height(const Site& site)
    : depth(site.num_layers > 1 ? static_cast<double>(site.layer) / static_cast<double>(site.num_layers - 1)
                                : 0),
      left(1 - static_cast<double>(site.layer) / static_cast<double>(site.num_layers)) {}

Init init_ramp(std::function<at::Tensor(const at::Tensor& ramp)> f) {
  return [f = std::move(f)](at::Tensor& value, at::Generator&) {
    const int64_t size = value.size(0);
    value.copy_(f(at::arange(size, value.options()) / static_cast<double>(std::max<int64_t>(1, size - 1))));
  };
}

Init init_mix(double power, double less, bool current) {
  return [power, less, current](at::Tensor& value, at::Generator&) {
    const int64_t size = value.size(0);
    const auto mu = 1 - at::pow(at::arange(size, value.options()) / static_cast<double>(size), power) - less;
    value.copy_(current ? 1 - mu : mu);
  };
}

Init init_orthogonal(double gain) {
  return [gain](at::Tensor& value, at::Generator& random) {
    const int64_t rows = value.size(-2), columns = value.size(-1);
    value.normal_(0, 1, random);
    const bool wide = rows < columns;
    const auto [q, r] = at::linalg_qr(wide ? value.transpose(-2, -1) : value);
    // Signs such that the draw is uniform over orthogonal matrices.
    const auto basis = q * at::diagonal(r, 0, -2, -1).sign().unsqueeze(-2);
    const double scale =
        gain * std::sqrt(std::max(1.0, static_cast<double>(rows) / static_cast<double>(columns)));
    value.copy_((wide ? basis.transpose(-2, -1) : basis) * scale);
  };
}

}  // namespace weft
