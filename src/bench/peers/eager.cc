#include "bench/peers/eager.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <cmath>

namespace weft::bench::peers {
namespace {

// [B, T, H, ...] -> [B, H, N, C, ...] in fp32, zeros behind the last token.
at::Tensor in_chunks(const at::Tensor& x, int64_t chunk) {
  auto y = x.to(at::kFloat).transpose(1, 2);  // [B, H, T, ...]
  const int64_t missing = (chunk - y.size(2) % chunk) % chunk;
  if (missing > 0) {
    std::vector<int64_t> pad(static_cast<size_t>(2 * (y.dim() - 2)), 0);
    pad.back() = missing;
    y = at::constant_pad_nd(y, pad);
  }
  return y.unflatten(2, {-1, chunk}).contiguous();
}

// Decays between tokens of a chunk applied to rows of q and k: (left_i . right_j) = q_i diag(exp(G_i - G_j))
// k_j.
struct Scores {
  at::Tensor sums;  // [B, H, N, C, 1 or K], cumulative log decay; undefined without decay
  at::Tensor mask;  // [B, H, N, C, C] exp(G_i - G_j) for a scalar decay; undefined otherwise

  at::Tensor operator()(const at::Tensor& q, const at::Tensor& k) const {
    if (!sums.defined()) return at::matmul(q, k.mT());
    if (mask.defined()) return at::matmul(q, k.mT()) * mask;
    return at::matmul(q * sums.exp(), (k * (-sums).exp()).mT());
  }
};

Scores scores_of(const at::Tensor& log_decay, int64_t chunk) {
  if (!log_decay.defined()) return {};
  auto sums = in_chunks(log_decay, chunk).cumsum(3);
  if (log_decay.dim() == 4) return {sums, {}};
  const auto mask = (sums.unsqueeze(-1) - sums.unsqueeze(-2)).tril().exp();
  return {sums.unsqueeze(-1), mask};
}

// (I + tril(beta k k', -1))^-1 [beta v, beta k] with decays in place.
std::pair<at::Tensor, at::Tensor> delta_rows(const Scores& scores, const at::Tensor& k, const at::Tensor& v,
                                             const at::Tensor& beta) {
  const auto k_beta = k * beta.unsqueeze(-1);
  const auto a = scores(k_beta, k).tril(-1);
  const auto from_start = scores.sums.defined() ? k_beta * scores.sums.exp() : k_beta;
  const auto right = at::cat({v * beta.unsqueeze(-1), from_start}, -1);
  const auto solved =
      at::linalg_solve_triangular(a, right, /*upper=*/false, /*left=*/true, /*unitriangular=*/true);
  return {solved.narrow(-1, 0, v.size(-1)), solved.narrow(-1, v.size(-1), k.size(-1))};
}

}  // namespace

at::Tensor chunked_linear_attention(const at::Tensor& q_in, const at::Tensor& k_in, const at::Tensor& v_in,
                                    const at::Tensor& log_decay, const at::Tensor& beta_in, int64_t chunk) {
  const auto q = in_chunks(q_in, chunk) / std::sqrt(static_cast<double>(q_in.size(3)));
  const auto k = in_chunks(k_in, chunk), v = in_chunks(v_in, chunk);
  const auto scores = scores_of(log_decay, chunk);
  const auto inside = scores(q, k).tril();
  const bool decays = scores.sums.defined(), erases = beta_in.defined();
  at::Tensor values = v, keys;
  if (erases) std::tie(values, keys) = delta_rows(scores, k, v, in_chunks(beta_in, chunk));
  at::Tensor q_start = q, k_end = k, forget;
  if (decays) {
    const auto last = scores.sums.narrow(3, chunk - 1, 1);
    q_start = q * scores.sums.exp();
    k_end = k * (last - scores.sums).exp();
    forget = last.exp().transpose(3, 4);  // [B, H, N, 1 or K, 1]
  }
  auto state = at::zeros({q.size(0), q.size(1), q.size(4), v.size(4)}, q.options());
  std::vector<at::Tensor> y;
  for (int64_t n = 0; n < q.size(2); ++n) {
    const auto of = [n](const at::Tensor& x) { return x.select(2, n); };
    const auto value = erases ? of(values) - at::matmul(of(keys), state) : of(values);
    y.push_back(at::matmul(of(q_start), state) + at::matmul(of(inside), value));
    state = (decays ? state * of(forget) : state) + at::matmul(of(k_end).mT(), value);
  }
  const auto whole = at::cat(y, 2).narrow(2, 0, v_in.size(1));  // [B, H, T, V]
  return whole.transpose(1, 2).to(v_in.scalar_type());
}

at::Tensor linear_attention_step(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 const at::Tensor& log_decay, const at::Tensor& beta, at::Tensor& state) {
  const auto row = [](const at::Tensor& x) { return x.to(at::kFloat).transpose(1, 2); };  // [B, H, 1, ...]
  if (log_decay.defined()) {
    const auto decay = row(log_decay).exp();  // [B, H, 1] or [B, H, 1, K]
    state.mul_(decay.dim() == 3 ? decay.unsqueeze(-1) : decay.mT());
  }
  auto value = row(v);
  if (beta.defined()) value = (value - at::matmul(row(k), state)) * row(beta).unsqueeze(-1);
  state.add_(row(k).mT() * value);
  const auto y = at::matmul(row(q) / std::sqrt(static_cast<double>(q.size(3))), state);
  return y.transpose(1, 2).to(v.scalar_type());
}

at::Tensor two_level_scan(const at::Tensor& a, const at::Tensor& b) {
  const int64_t tokens = b.size(1), block = std::max<int64_t>(1, std::llround(std::sqrt(tokens)));
  const int64_t missing = (block - tokens % block) % block;
  const auto blocks = [&](const at::Tensor& x) {
    if (missing == 0) return x.unflatten(1, {-1, block}).unbind(2);
    std::vector<int64_t> pad(static_cast<size_t>(2 * (x.dim() - 1)), 0);
    pad.back() = missing;
    return at::constant_pad_nd(x, pad).unflatten(1, {-1, block}).unbind(2);  // block tensors [B, N, ...]
  };
  const auto as = blocks(a), bs = blocks(b);
  std::vector<at::Tensor> inner{bs[0]}, factor{as[0]};
  for (size_t i = 1; i < bs.size(); ++i) {
    inner.push_back(at::addcmul(bs[i], as[i], inner.back()));
    factor.push_back(as[i] * factor.back());
  }
  const auto ends = inner.back().unbind(1), products = factor.back().unbind(1);
  std::vector<at::Tensor> before{at::zeros_like(ends[0])};
  for (size_t n = 0; n + 1 < ends.size(); ++n)
    before.push_back(at::addcmul(ends[n], products[n], before.back()));
  const auto carried = at::stack(before, 1).unsqueeze(2);  // [B, N, 1, ...]
  const auto h = at::addcmul(at::stack(inner, 2), at::stack(factor, 2), carried);
  return h.flatten(1, 2).narrow(1, 0, tokens);
}

at::Tensor selective_scan(const at::Tensor& u, const at::Tensor& delta, const at::Tensor& a,
                          const at::Tensor& b, const at::Tensor& c, const at::Tensor& skip) {
  const auto step = delta.to(at::kFloat).unsqueeze(-1);  // [B, T, E, 1]
  const auto decay = (step * a).exp();                   // [B, T, E, N]
  const auto input = step * u.to(at::kFloat).unsqueeze(-1) * b.to(at::kFloat).unsqueeze(2);
  const auto h = two_level_scan(decay, input);
  const auto y = at::matmul(h, c.to(at::kFloat).unsqueeze(-1)).squeeze(-1);
  return at::addcmul(y, skip, u.to(at::kFloat)).to(u.scalar_type());
}

at::Tensor short_conv_silu(const at::Tensor& x, const at::Tensor& weight) {
  const int64_t width = weight.size(1), one = 1;
  const auto y = at::conv1d(x.mT(), weight.unsqueeze(1), {}, one, width - 1, one, x.size(2));
  return at::silu(y.narrow(2, 0, x.size(1)).mT());
}

at::Tensor short_conv_silu_step(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& state) {
  const auto window = at::cat({state, x}, 1);  // [B, W, C]
  state.copy_(window.narrow(1, 1, state.size(1)));
  return at::silu((window * weight.t()).sum(1, /*keepdim=*/true));
}

at::Tensor rope(const at::Tensor& x, const at::Tensor& cosine, const at::Tensor& sine) {
  const auto halves = x.chunk(2, -1);
  const auto c = cosine.unsqueeze(1), s = sine.unsqueeze(1);  // [T, 1, K / 2]
  return at::cat({halves[0] * c - halves[1] * s, halves[1] * c + halves[0] * s}, -1);
}

at::Tensor fft_conv(const at::Tensor& u, const at::Tensor& kernel) {
  const int64_t tokens = u.size(1), length = 2 * tokens;
  const auto spectrum = at::fft_rfft(u.transpose(1, 2), length) * at::fft_rfft(kernel, length);
  return at::fft_irfft(spectrum, length).slice(2, 0, tokens).transpose(1, 2);
}

}  // namespace weft::bench::peers
