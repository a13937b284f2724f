#include "ops/conv/ssm_kernels.h"

#include <bit>
#include <cmath>

#include "base/error.h"
#include "ops/conv/long_conv.h"
#include "ops/recurrence.h"
#include "ops/shape.h"

namespace weft::ops {
namespace {

at::Tensor in_fp64(const at::Tensor& x) { return x.to(x.is_complex() ? at::kComplexDouble : at::kDouble); }

// Lags l = j inner + i with i < inner, j < outer.
struct Levels {
  int64_t inner, outer;
};

Levels levels(int64_t length) {
  const auto bits = std::bit_width(static_cast<uint64_t>(std::max<int64_t>(1, length) - 1));
  const int64_t inner = int64_t{1} << ((bits + 1) / 2);
  return {inner, std::max<int64_t>(1, (length + inner - 1) / inner)};
}

// a^0 ... a^(count - 1) along a new last dimension, by doubling.
at::Tensor powers(const at::Tensor& a, int64_t count) {
  auto result = at::ones_like(a).unsqueeze(-1);
  auto square = a.unsqueeze(-1);
  while (result.size(-1) < count) {
    result = at::cat({result, result * square}, -1);
    square = square * square;
  }
  return result.narrow(-1, 0, count);
}

at::Tensor power(const at::Tensor& a, int64_t exponent) {
  auto result = at::ones_like(a);
  auto square = a;
  for (; exponent > 0; exponent /= 2) {
    if (exponent % 2 == 1) result = result * square;
    if (exponent > 1) square = square * square;
  }
  return result;
}

at::ScalarType type_for(const at::Tensor& a, at::ScalarType real) {
  return a.is_complex() ? c10::toComplexType(real) : real;
}

// Real and imaginary parts side by side along dimension `dim`; the imaginary ones times `sign`.
at::Tensor parts(const at::Tensor& x, int64_t dim, double sign) {
  return x.is_complex() ? at::cat({at::real(x), sign * at::imag(x)}, dim) : x;
}

// True for the tokens of the document that the state continues, of the one that goes on after the call.
at::Tensor continued(const at::Tensor& starts) { return starts.to(at::kLong).cumsum(1) == 0; }
at::Tensor unfinished(const at::Tensor& starts) {
  const auto document = starts.to(at::kLong).cumsum(1);
  return document == document.slice(1, -1);
}

void check(const char* op, const at::Tensor& u, const at::Tensor& a, const at::Tensor& b, const at::Tensor& c,
           const at::Tensor& initial, const at::Tensor& starts) {
  require_like(op, "u", u, u);
  require_shape(op, "u", u, {-1, -1, -1});
  require_like(op, "a", a, u);
  require_like(op, "b", b, u);
  require_like(op, "c", c, u);
  require_shape(op, "b", b, {u.size(2), a.size(-1)});
  require_shape(op, "c", c, {u.size(2), a.size(-1)});
  if (initial.defined()) require_shape(op, "initial", initial, {u.size(0), u.size(2), a.size(-1)});
  check_starts(op, starts, u, u.size(0), u.size(1));
}

// The last document's inputs, zero before it.
at::Tensor last_inputs(const at::Tensor& u, const at::Tensor& starts) {
  return starts.defined() ? u * unfinished(starts).unsqueeze(-1).to(u.scalar_type()) : u;
}

// `before` where no document began, else zero. [B, E, N]
at::Tensor kept(const at::Tensor& before, const at::Tensor& starts) {
  if (!starts.defined()) return before;
  return before * starts.any(1).logical_not().view({-1, 1, 1}).to(before.scalar_type());
}

// Adds what the initial state contributes, [B, E, T], to the outputs of the document that it belongs to.
at::Tensor add_response(const at::Tensor& y, const at::Tensor& response, const at::Tensor& starts) {
  const auto tokens_first = response.transpose(1, 2);
  return y + (starts.defined() ? tokens_first * continued(starts).unsqueeze(-1).to(y.scalar_type())
                               : tokens_first);
}

// The vectors v [E, N, M] times a^0 ... a^(count - 1): [E, N, count M], M fastest.
at::Tensor krylov(const at::Tensor& a, const at::Tensor& v, int64_t count) {
  const int64_t width = v.size(-1);
  auto result = v;
  auto square = a;
  while (result.size(-1) < count * width) {
    result = at::cat({result, at::bmm(square, result)}, -1);
    if (result.size(-1) < count * width) square = at::bmm(square, square);
  }
  return result.narrow(-1, 0, count * width);
}

// a^exponent times the columns of v [E, N, M].
at::Tensor power_times(const at::Tensor& a, at::Tensor v, int64_t exponent) {
  auto square = a;
  for (; exponent > 0; exponent /= 2) {
    if (exponent % 2 == 1) v = at::bmm(square, v);
    if (exponent > 1) square = at::bmm(square, square);
  }
  return v;
}

// sum_t a^(T - 1 - t) b u_t: blocks of `inner` tokens by the Krylov vectors of b, then neighbours in pairs.
at::Tensor dense_moments(const at::Tensor& a, const at::Tensor& b, const at::Tensor& u,
                         const at::Tensor& inner_power, const Levels& size) {
  const int64_t batch = u.size(0), channels = u.size(2);
  int64_t blocks = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(size.outer)));
  const auto padded = at::constant_pad_nd(u, {0, 0, blocks * size.inner - u.size(1), 0});
  const auto columns =
      padded.view({batch, blocks, size.inner, channels}).permute({3, 2, 1, 0});  // [E, C, J, B]
  auto sums = at::bmm(krylov(a, b.unsqueeze(-1), size.inner).flip(-1).to(u.scalar_type()),
                      columns.reshape({channels, size.inner, blocks * batch}));  // [E, N, J B]
  for (auto step = inner_power; blocks > 1; blocks /= 2) {
    const auto pairs = sums.view({channels, -1, blocks / 2, 2, batch});
    sums = at::bmm(step.to(u.scalar_type()), pairs.select(3, 0).reshape({channels, -1, blocks / 2 * batch})) +
           pairs.select(3, 1).reshape({channels, -1, blocks / 2 * batch});
    if (blocks > 2) step = at::bmm(step, step);
  }
  return sums.permute({2, 0, 1});  // [B, E, N]
}

}  // namespace

at::Tensor exponential_sum(const at::Tensor& a, const at::Tensor& w, int64_t length) {
  const int64_t batch = w.size(0), channels = w.size(1);
  const auto size = levels(length);
  const auto base = in_fp64(a);
  const auto type = type_for(a, c10::toRealValueType(w.scalar_type()));
  const auto inner = powers(base, size.inner).to(type);                                // [E, N, C]
  const auto outer = powers(power(base, size.inner), size.outer).to(type);             // [E, N, J]
  const auto left = w.transpose(0, 1).unsqueeze(-1) * outer.unsqueeze(1);              // [E, B, N, J]
  const auto rows = parts(left, 2, -1).transpose(2, 3).flatten(1, 2);                  // [E, B J, N or 2 N]
  const auto columns = w.is_complex() || a.is_complex() ? parts(inner, 1, 1) : inner;  // [E, N or 2 N, C]
  return at::bmm(rows, columns).view({channels, batch, -1}).narrow(2, 0, length).transpose(0, 1);
}

at::Tensor exponential_moments(const at::Tensor& a, const at::Tensor& u) {
  const int64_t batch = u.size(0), channels = u.size(2);
  const auto size = levels(u.size(1));
  const auto base = in_fp64(a);
  const auto type = type_for(a, u.scalar_type());
  const auto padded = at::constant_pad_nd(u, {0, 0, size.outer * size.inner - u.size(1), 0});
  const auto rows =
      padded.view({batch, size.outer, size.inner, channels}).permute({3, 0, 1, 2});  // [E, B, J, C]
  const auto inner = powers(base, size.inner).flip(-1).transpose(1, 2).to(type);     // [E, C, N]
  auto sums = at::bmm(rows.reshape({channels, batch * size.outer, size.inner}), parts(inner, 2, 1));
  if (a.is_complex()) {
    const auto halves = sums.chunk(2, -1);
    sums = at::complex(halves[0], halves[1]);
  }
  const auto outer =
      powers(power(base, size.inner), size.outer).flip(-1).transpose(1, 2).to(type);  // [E, J, N]
  return (sums.view({channels, batch, size.outer, -1}) * outer.unsqueeze(1)).sum(2).transpose(0, 1);
}

LtiResult diagonal_ssm(const DiagonalSsm& in) {
  check("diagonal_ssm", in.u, in.a, in.b, in.c, in.initial, in.starts);
  require_shape("diagonal_ssm", "a", in.a, {in.u.size(2), -1});
  const auto real = accumulate_type(in.u);
  const auto type = type_for(in.a, real);
  const auto u = in.u.to(real);
  const auto a = in_fp64(in.a), c = in_fp64(in.c);
  const int64_t tokens = u.size(1);
  const auto initial = in.initial.defined() ? in.initial.to(type) : at::Tensor();
  const auto fresh = [&] { return at::zeros({u.size(0), u.size(2), a.size(1)}, u.options().dtype(type)); };
  if (tokens == 0) return {u, initial.defined() ? initial : fresh()};

  const auto kernel = exponential_sum(a, (c * in.b).to(type).unsqueeze(0), tokens)[0];
  LtiResult result{long_conv(u, kernel, in.starts), {}};
  if (initial.defined())
    result.y = add_response(result.y, exponential_sum(a, (c * a).to(type) * initial, tokens), in.starts);
  if (in.keep_state) {
    result.state = in.b.to(type) * exponential_moments(a, last_inputs(u, in.starts));
    if (initial.defined()) result.state = result.state + power(a, tokens).to(type) * kept(initial, in.starts);
  }
  return result;
}

at::Tensor dense_kernel(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c, int64_t length) {
  const auto size = levels(length);
  const auto wide = in_fp64(a);
  const auto right = krylov(wide, in_fp64(b).unsqueeze(-1), size.inner);  // [E, N, C]
  const auto left =
      krylov(at::matrix_power(wide, size.inner).transpose(1, 2), in_fp64(c).unsqueeze(-1), size.outer);
  return at::bmm(left.transpose(1, 2).to(c.scalar_type()), right.to(c.scalar_type()))
      .flatten(1)
      .narrow(1, 0, length);
}

at::Tensor times_power(const at::Tensor& v, const at::Tensor& a, int64_t length) {
  return power_times(in_fp64(a).transpose(1, 2), in_fp64(v).unsqueeze(-1), length).squeeze(-1);
}

LtiResult dense_ssm(const DenseSsm& in) {
  check("dense_ssm", in.u, in.a, in.b, in.c, in.initial, in.starts);
  require_shape("dense_ssm", "a", in.a, {in.u.size(2), -1, in.a.size(-1)});
  const auto type = accumulate_type(in.u);
  const auto u = in.u.to(type);
  const int64_t batch = u.size(0), tokens = u.size(1), channels = u.size(2), states = in.a.size(-1);
  const auto a = in_fp64(in.a), b = in_fp64(in.b), c = in_fp64(in.c);
  const auto initial = in.initial.defined() ? in.initial.to(type) : at::Tensor();
  if (tokens == 0)
    return {u, initial.defined() ? initial : at::zeros({batch, channels, states}, u.options())};

  const auto size = levels(tokens);
  const auto step = at::matrix_power(a, size.inner);
  const auto left =
      krylov(step.transpose(1, 2), c.unsqueeze(-1), size.outer).transpose(1, 2).to(type);  // [E, J, N]
  const auto read = [&](const at::Tensor& columns, int64_t count) {  // [E, N, C count] -> [count, E, T]
    return at::bmm(left, columns.to(type))
        .view({channels, size.outer * size.inner, count})
        .permute({2, 0, 1})
        .narrow(2, 0, tokens);
  };
  const auto kernel = in.kernel.defined() ? in.kernel : read(krylov(a, b.unsqueeze(-1), size.inner), 1)[0];
  LtiResult result{long_conv(u, kernel.to(type), in.starts), {}};
  const auto columns = initial.defined() ? in_fp64(initial).permute({1, 2, 0}) : at::Tensor();  // [E, N, B]
  if (initial.defined())
    result.y = add_response(result.y, read(krylov(a, at::bmm(a, columns), size.inner), batch), in.starts);
  if (in.keep_state) {
    result.state = dense_moments(a, b, last_inputs(u, in.starts), step, size);
    if (initial.defined())
      result.state =
          result.state + kept(power_times(a, columns, tokens).permute({2, 0, 1}).to(type), in.starts);
  }
  return result;
}

}  // namespace weft::ops
