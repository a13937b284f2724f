// The pointwise steps of the built-in cells and their derivatives on rows of fp32.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/rnn/kernel_cpu_cells.cc"
#include "ops/simd/targets.h"
//
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
//
#include "hwy/contrib/math/math-inl.h"
#include "ops/rnn/kernel.h"
#include "ops/simd/exp-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weft::kernels::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
namespace fast = simd::HWY_NAMESPACE;
using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

// Reads and writes one vector at offset i of a row: all lanes, or those of a mask at the end of the row.
struct Whole {
  int64_t i;
  HWY_INLINE V load(const float* row) const { return hn::LoadU(D(), row + i); }
  HWY_INLINE void store(V x, float* row) const { hn::StoreU(x, D(), row + i); }
};
struct Part {
  int64_t i;
  hn::Mask<D> mask;
  HWY_INLINE V load(const float* row) const { return hn::MaskedLoad(mask, D(), row + i); }
  HWY_INLINE void store(V x, float* row) const { hn::BlendedStore(x, mask, D(), row + i); }
};

template <class Step>
HWY_INLINE void for_each_vector(int64_t n, const Step& step) {
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(D()));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) step(Whole{i});
  if (i < n) step(Part{i, hn::FirstN(D(), static_cast<size_t>(n - i))});
}

HWY_INLINE V one() { return hn::Set(D(), 1.0f); }
HWY_INLINE V one_minus_square(V x) { return hn::NegMulAdd(x, x, one()); }
HWY_INLINE V sigmoid_slope(V s) { return hn::NegMulAdd(s, s, s); }  // from the value: s (1 - s)

// Arguments of a backward step, named as in ops::Cell.
struct Backward {
  const float* const* saved;
  const float* const* states;
  const float* const* new_states;
  const float* const* d_new;
  float* const* d_gates;
  float* const* d_states;
};

struct Forward {
  float* const* gates;
  const float* const* states;
  float* const* new_states;
};

struct ElmanForward : Forward {
  template <class At>
  HWY_INLINE void operator()(const At& at) const {
    at.store(fast::tanh(D(), at.load(gates[0])), new_states[0]);
  }
};

struct ElmanBackward : Backward {
  template <class At>
  HWY_INLINE void operator()(const At& at) const {
    at.store(hn::Mul(at.load(d_new[0]), one_minus_square(at.load(new_states[0]))), d_gates[0]);
    at.store(hn::Zero(D()), d_states[0]);
  }
};

// Saves i, f, z, o after their sigmoid or tanh.
struct LstmForward : Forward {
  template <class At>
  HWY_INLINE void operator()(const At& at) const {
    const D d;
    const V i = fast::sigmoid(d, at.load(gates[0])), f = fast::sigmoid(d, at.load(gates[1]));
    const V z = fast::tanh(d, at.load(gates[2])), o = fast::sigmoid(d, at.load(gates[3]));
    const V c = hn::MulAdd(f, at.load(states[1]), hn::Mul(i, z));
    at.store(i, gates[0]);
    at.store(f, gates[1]);
    at.store(z, gates[2]);
    at.store(o, gates[3]);
    at.store(hn::Mul(o, fast::tanh(d, c)), new_states[0]);
    at.store(c, new_states[1]);
  }
};

struct LstmBackward : Backward {
  template <class At>
  HWY_INLINE void operator()(const At& at) const {
    const V i = at.load(saved[0]), f = at.load(saved[1]), z = at.load(saved[2]), o = at.load(saved[3]);
    const V squashed = fast::tanh(D(), at.load(new_states[1])), dh = at.load(d_new[0]);
    const V dc = hn::MulAdd(hn::Mul(dh, o), one_minus_square(squashed), at.load(d_new[1]));
    at.store(hn::Mul(hn::Mul(dc, z), sigmoid_slope(i)), d_gates[0]);
    at.store(hn::Mul(hn::Mul(dc, at.load(states[1])), sigmoid_slope(f)), d_gates[1]);
    at.store(hn::Mul(hn::Mul(dc, i), one_minus_square(z)), d_gates[2]);
    at.store(hn::Mul(hn::Mul(dh, squashed), sigmoid_slope(o)), d_gates[3]);
    at.store(hn::Zero(D()), d_states[0]);
    at.store(hn::Mul(dc, f), d_states[1]);
  }
};

HWY_INLINE V log_sigmoid(V x) {
  const D d;
  return hn::Sub(hn::Min(x, hn::Zero(d)), hn::Log1p(d, fast::exp(d, hn::Neg(hn::Abs(x)))));
}

// e^min(x, 0)
HWY_INLINE V bounded_exp(V x) { return fast::exp(D(), hn::Min(x, hn::Zero(D()))); }

// States h, c, n, m. Saves i, the forget gate before its log-sigmoid, z, o.
struct SlstmForward : Forward {
  template <class At>
  HWY_INLINE void operator()(const At& at) const {
    const D d;
    const V input = at.load(gates[0]), n = at.load(states[2]);
    const V kept = hn::Add(log_sigmoid(at.load(gates[1])), at.load(states[3]));
    const V m = hn::IfThenElse(hn::Eq(n, hn::Zero(d)), input, hn::Max(input, kept));
    const V i = bounded_exp(hn::Sub(input, m)), f = bounded_exp(hn::Sub(kept, m));
    const V z = fast::tanh(d, at.load(gates[2])), o = fast::sigmoid(d, at.load(gates[3]));
    const V c = hn::MulAdd(f, at.load(states[1]), hn::Mul(i, z));
    const V new_n = hn::Max(hn::MulAdd(f, n, i), one());
    at.store(i, gates[0]);
    at.store(z, gates[2]);
    at.store(o, gates[3]);
    at.store(hn::Div(hn::Mul(o, c), new_n), new_states[0]);
    at.store(c, new_states[1]);
    at.store(new_n, new_states[2]);
    at.store(m, new_states[3]);
  }
};

struct SlstmBackward : Backward {
  template <class At>
  HWY_INLINE void operator()(const At& at) const {
    const D d;
    const V i = at.load(saved[0]), forget = at.load(saved[1]), z = at.load(saved[2]), o = at.load(saved[3]);
    const V h = at.load(new_states[0]), n = at.load(new_states[2]), m = at.load(new_states[3]);
    const V f = bounded_exp(hn::Sub(hn::Add(log_sigmoid(forget), at.load(states[3])), m));
    const V dh = at.load(d_new[0]), share = hn::Div(dh, n);
    const V dc = hn::MulAdd(share, o, at.load(d_new[1])), dn = hn::NegMulAdd(share, h, at.load(d_new[2]));
    const V df = hn::MulAdd(at.load(states[1]), dc, hn::Mul(at.load(states[2]), dn));
    at.store(hn::Mul(i, hn::MulAdd(z, dc, dn)), d_gates[0]);
    at.store(hn::Mul(hn::Mul(f, df), fast::sigmoid(d, hn::Neg(forget))), d_gates[1]);
    at.store(hn::Mul(hn::Mul(dc, i), one_minus_square(z)), d_gates[2]);
    at.store(hn::Mul(hn::Mul(dh, h), hn::Sub(one(), o)), d_gates[3]);
    at.store(hn::Zero(d), d_states[0]);
    at.store(hn::Mul(f, dc), d_states[1]);
    at.store(hn::Mul(f, dn), d_states[2]);
    at.store(hn::Zero(d), d_states[3]);
  }
};

using ConstRows = const float* const*;
using Rows = float* const*;

void elman_forward(int64_t n, Rows gates, ConstRows states, Rows new_states) {
  for_each_vector(n, ElmanForward{{gates, states, new_states}});
}
void elman_backward(int64_t n, ConstRows saved, ConstRows states, ConstRows new_states, ConstRows d_new,
                    Rows d_gates, Rows d_states) {
  for_each_vector(n, ElmanBackward{{saved, states, new_states, d_new, d_gates, d_states}});
}
void lstm_forward(int64_t n, Rows gates, ConstRows states, Rows new_states) {
  for_each_vector(n, LstmForward{{gates, states, new_states}});
}
void lstm_backward(int64_t n, ConstRows saved, ConstRows states, ConstRows new_states, ConstRows d_new,
                   Rows d_gates, Rows d_states) {
  for_each_vector(n, LstmBackward{{saved, states, new_states, d_new, d_gates, d_states}});
}
void slstm_forward(int64_t n, Rows gates, ConstRows states, Rows new_states) {
  for_each_vector(n, SlstmForward{{gates, states, new_states}});
}
void slstm_backward(int64_t n, ConstRows saved, ConstRows states, ConstRows new_states, ConstRows d_new,
                    Rows d_gates, Rows d_states) {
  for_each_vector(n, SlstmBackward{{saved, states, new_states, d_new, d_gates, d_states}});
}

}  // namespace
}  // namespace weft::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace weft::kernels {
using ConstRows = const float* const*;
using Rows = float* const*;
WEFT_SIMD_DISPATCH(elman_forward, (int64_t n, Rows g, ConstRows s, Rows t), (n, g, s, t))
WEFT_SIMD_DISPATCH(elman_backward,
                   (int64_t n, ConstRows g, ConstRows s, ConstRows t, ConstRows dt, Rows dg, Rows ds),
                   (n, g, s, t, dt, dg, ds))
WEFT_SIMD_DISPATCH(lstm_forward, (int64_t n, Rows g, ConstRows s, Rows t), (n, g, s, t))
WEFT_SIMD_DISPATCH(lstm_backward,
                   (int64_t n, ConstRows g, ConstRows s, ConstRows t, ConstRows dt, Rows dg, Rows ds),
                   (n, g, s, t, dt, dg, ds))
WEFT_SIMD_DISPATCH(slstm_forward, (int64_t n, Rows g, ConstRows s, Rows t), (n, g, s, t))
WEFT_SIMD_DISPATCH(slstm_backward,
                   (int64_t n, ConstRows g, ConstRows s, ConstRows t, ConstRows dt, Rows dg, Rows ds),
                   (n, g, s, t, dt, dg, ds))
}  // namespace weft::kernels
#endif
