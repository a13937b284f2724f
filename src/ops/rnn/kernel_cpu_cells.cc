// The pointwise steps of the built-in cells with recurrent matrices, and their derivatives, on rows of fp32.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/rnn/kernel_cpu_cells.cc"
#include "ops/simd/targets.h"
//
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
//
#include "hwy/contrib/math/math-inl.h"
#include "ops/rnn/cell_rows-inl.h"
#include "ops/rnn/kernel.h"
#include "ops/simd/exp-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weft::kernels::HWY_NAMESPACE {
namespace {

namespace fast = simd::HWY_NAMESPACE;
using ops::CellGradient;
using ops::CellStep;

struct ElmanForward : CellStep {
  template <class At>
  HWY_INLINE void operator()(const At& at) const {
    at.store(fast::tanh(D(), at.load(gates[0])), new_states[0]);
  }
};

struct ElmanBackward : CellGradient {
  template <class At>
  HWY_INLINE void operator()(const At& at) const {
    at.store(hn::Mul(at.load(d_new_states[0]), one_minus_square(at.load(new_states[0]))), d_gates[0]);
    at.store(hn::Zero(D()), d_states[0]);
  }
};

// Saves i, f, z, o after their sigmoid or tanh.
struct LstmForward : CellStep {
  template <class At>
  HWY_INLINE void operator()(const At& at) const {
    const D d;
    const V i = fast::sigmoid(d, at.load(gates[0])), f = fast::sigmoid(d, at.load(gates[1]));
    const V z = fast::tanh(d, at.load(gates[2])), o = fast::sigmoid(d, at.load(gates[3]));
    const V c = hn::MulAdd(f, at.load(states[1]), hn::Mul(i, z));
    at.store(i, saved[0]);
    at.store(f, saved[1]);
    at.store(z, saved[2]);
    at.store(o, saved[3]);
    at.store(hn::Mul(o, fast::tanh(d, c)), new_states[0]);
    at.store(c, new_states[1]);
  }
};

struct LstmBackward : CellGradient {
  template <class At>
  HWY_INLINE void operator()(const At& at) const {
    const V i = at.load(saved[0]), f = at.load(saved[1]), z = at.load(saved[2]), o = at.load(saved[3]);
    const V squashed = fast::tanh(D(), at.load(new_states[1])), dh = at.load(d_new_states[0]);
    const V dc = hn::MulAdd(hn::Mul(dh, o), one_minus_square(squashed), at.load(d_new_states[1]));
    at.store(hn::Mul(hn::Mul(dc, z), sigmoid_slope(i)), d_gates[0]);
    at.store(hn::Mul(hn::Mul(dc, at.load(states[1])), sigmoid_slope(f)), d_gates[1]);
    at.store(hn::Mul(hn::Mul(dc, i), one_minus_square(z)), d_gates[2]);
    at.store(hn::Mul(hn::Mul(dh, squashed), sigmoid_slope(o)), d_gates[3]);
    at.store(hn::Zero(D()), d_states[0]);
    at.store(hn::Mul(dc, f), d_states[1]);
  }
};

// Saves n_h, and r, u, n after their sigmoid or tanh.
struct GruForward : CellStep {
  template <class At>
  HWY_INLINE void operator()(const At& at) const {
    const D d;
    const V recurrent = at.load(gates[0]);
    const V r = fast::sigmoid(d, at.load(gates[1])), u = fast::sigmoid(d, at.load(gates[2]));
    const V n = fast::tanh(d, hn::MulAdd(r, recurrent, at.load(gates[3])));
    at.store(recurrent, saved[0]);
    at.store(r, saved[1]);
    at.store(u, saved[2]);
    at.store(n, saved[3]);
    at.store(hn::MulAdd(u, hn::Sub(at.load(states[0]), n), n), new_states[0]);
  }
};

struct GruBackward : CellGradient {
  template <class At>
  HWY_INLINE void operator()(const At& at) const {
    const V r = at.load(saved[1]), u = at.load(saved[2]), n = at.load(saved[3]);
    const V dh = at.load(d_new_states[0]), kept = hn::Mul(dh, u);
    const V dn = hn::Mul(hn::Sub(dh, kept), one_minus_square(n));
    at.store(hn::Mul(dn, r), d_gates[0]);
    at.store(hn::Mul(hn::Mul(dn, at.load(saved[0])), sigmoid_slope(r)), d_gates[1]);
    at.store(hn::Mul(hn::Mul(dh, hn::Sub(at.load(states[0]), n)), sigmoid_slope(u)), d_gates[2]);
    at.store(dn, d_gates[3]);
    at.store(kept, d_states[0]);
  }
};

HWY_INLINE V log_sigmoid(V x) {
  const D d;
  return hn::Sub(hn::Min(x, hn::Zero(d)), hn::Log1p(d, fast::exp(d, hn::Neg(hn::Abs(x)))));
}

// e^min(x, 0)
HWY_INLINE V bounded_exp(V x) { return fast::exp(D(), hn::Min(x, hn::Zero(D()))); }

// States h, c, n, m. Saves i, the forget gate before its log-sigmoid, z, o.
struct SlstmForward : CellStep {
  template <class At>
  HWY_INLINE void operator()(const At& at) const {
    const D d;
    const V input = at.load(gates[0]), forget = at.load(gates[1]), n = at.load(states[2]);
    const V kept = hn::Add(log_sigmoid(forget), at.load(states[3]));
    const V m = hn::IfThenElse(hn::Eq(n, hn::Zero(d)), input, hn::Max(input, kept));
    const V i = bounded_exp(hn::Sub(input, m)), f = bounded_exp(hn::Sub(kept, m));
    const V z = fast::tanh(d, at.load(gates[2])), o = fast::sigmoid(d, at.load(gates[3]));
    const V c = hn::MulAdd(f, at.load(states[1]), hn::Mul(i, z));
    const V new_n = hn::Max(hn::MulAdd(f, n, i), one());
    at.store(i, saved[0]);
    at.store(forget, saved[1]);
    at.store(z, saved[2]);
    at.store(o, saved[3]);
    at.store(hn::Div(hn::Mul(o, c), new_n), new_states[0]);
    at.store(c, new_states[1]);
    at.store(new_n, new_states[2]);
    at.store(m, new_states[3]);
  }
};

struct SlstmBackward : CellGradient {
  template <class At>
  HWY_INLINE void operator()(const At& at) const {
    const D d;
    const V i = at.load(saved[0]), forget = at.load(saved[1]), z = at.load(saved[2]), o = at.load(saved[3]);
    const V h = at.load(new_states[0]), n = at.load(new_states[2]), m = at.load(new_states[3]);
    const V f = bounded_exp(hn::Sub(hn::Add(log_sigmoid(forget), at.load(states[3])), m));
    const V dh = at.load(d_new_states[0]), share = hn::Div(dh, n);
    const V dc = hn::MulAdd(share, o, at.load(d_new_states[1])),
            dn = hn::NegMulAdd(share, h, at.load(d_new_states[2]));
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

void elman_forward(const CellStep& step) { for_each_vector(step.n, ElmanForward{step}); }
void elman_backward(const CellGradient& gradient) { for_each_vector(gradient.n, ElmanBackward{gradient}); }
void lstm_forward(const CellStep& step) { for_each_vector(step.n, LstmForward{step}); }
void lstm_backward(const CellGradient& gradient) { for_each_vector(gradient.n, LstmBackward{gradient}); }
void gru_forward(const CellStep& step) { for_each_vector(step.n, GruForward{step}); }
void gru_backward(const CellGradient& gradient) { for_each_vector(gradient.n, GruBackward{gradient}); }
void slstm_forward(const CellStep& step) { for_each_vector(step.n, SlstmForward{step}); }
void slstm_backward(const CellGradient& gradient) { for_each_vector(gradient.n, SlstmBackward{gradient}); }

}  // namespace
}  // namespace weft::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace weft::kernels {
WEFT_SIMD_DISPATCH(elman_forward, (const ops::CellStep& step), (step))
WEFT_SIMD_DISPATCH(elman_backward, (const ops::CellGradient& gradient), (gradient))
WEFT_SIMD_DISPATCH(lstm_forward, (const ops::CellStep& step), (step))
WEFT_SIMD_DISPATCH(lstm_backward, (const ops::CellGradient& gradient), (gradient))
WEFT_SIMD_DISPATCH(gru_forward, (const ops::CellStep& step), (step))
WEFT_SIMD_DISPATCH(gru_backward, (const ops::CellGradient& gradient), (gradient))
WEFT_SIMD_DISPATCH(slstm_forward, (const ops::CellStep& step), (step))
WEFT_SIMD_DISPATCH(slstm_backward, (const ops::CellGradient& gradient), (gradient))
}  // namespace weft::kernels
#endif
