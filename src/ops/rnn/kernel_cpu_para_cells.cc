// The pointwise steps of the built-in cells without recurrent matrices, their Jacobians and derivatives, on rows of fp32.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/rnn/kernel_cpu_para_cells.cc"
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

// What z, r and g of the GRU are at one position.
struct ParaGruGates {
  V h, z, r, g;
};

template <class At>
HWY_INLINE ParaGruGates para_gru_gates(const CellStep& s, const At& at) {
  const D d;
  const V h = at.load(s.states[0]);
  const V z = fast::sigmoid(d, hn::MulAdd(at.load(s.parameters[0]), h, at.load(s.gates[0])));
  const V r = fast::sigmoid(d, hn::MulAdd(at.load(s.parameters[1]), h, at.load(s.gates[1])));
  const V fed = hn::Mul(at.load(s.parameters[2]), hn::Mul(r, h));
  const V g = fast::tanh(d, hn::Add(at.load(s.gates[2]), fed));
  at.store(z, s.saved[0]);
  at.store(r, s.saved[1]);
  at.store(g, s.saved[2]);
  at.store(hn::MulAdd(z, hn::Sub(g, h), h), s.new_states[0]);
  return {h, z, r, g};
}

struct ParaGruForward : CellStep {
  template <class At>
  HWY_INLINE void operator()(const At& at) const {
    para_gru_gates(*this, at);
  }
};

// J = 1 - z + (g - h) dz + z dg
struct ParaGruLinearize : CellStep {
  template <class At>
  HWY_INLINE void operator()(const At& at) const {
    const auto [h, z, r, g] = para_gru_gates(*this, at);
    const V dz = hn::Mul(at.load(parameters[0]), sigmoid_slope(z));
    const V dr = hn::Mul(at.load(parameters[1]), sigmoid_slope(r));
    const V dg = hn::Mul(hn::Mul(at.load(parameters[2]), one_minus_square(g)), hn::MulAdd(h, dr, r));
    at.store(hn::MulAdd(hn::Sub(g, h), dz, hn::MulAdd(z, dg, hn::Sub(one(), z))), jacobian[0]);
  }
};

struct ParaGruBackward : CellGradient {
  template <class At>
  HWY_INLINE void operator()(const At& at) const {
    const V h = at.load(states[0]), dh = at.load(d_new_states[0]);
    const V z = at.load(saved[0]), r = at.load(saved[1]), g = at.load(saved[2]), a = at.load(parameters[2]);
    const V moved = hn::Mul(dh, z), dg = hn::Mul(moved, one_minus_square(g)), da = hn::Mul(dg, a);
    const V dz = hn::Mul(hn::Mul(dh, hn::Sub(g, h)), sigmoid_slope(z));
    const V dr = hn::Mul(hn::Mul(da, h), sigmoid_slope(r));
    at.store(dz, d_gates[0]);
    at.store(dr, d_gates[1]);
    at.store(dg, d_gates[2]);
    const V direct = hn::MulAdd(da, r, hn::Sub(dh, moved));
    at.store(hn::MulAdd(dz, at.load(parameters[0]), hn::MulAdd(dr, at.load(parameters[1]), direct)),
             d_states[0]);
    at.store(hn::MulAdd(dz, h, at.load(d_parameters[0])), d_parameters[0]);
    at.store(hn::MulAdd(dr, h, at.load(d_parameters[1])), d_parameters[1]);
    at.store(hn::MulAdd(dg, hn::Mul(r, h), at.load(d_parameters[2])), d_parameters[2]);
  }
};

// What f, o and z of the LSTM are at one position, with the old c, the new one and its tanh.
struct ParaLstmGates {
  V c, f, o, z, squashed;
};

template <class At>
HWY_INLINE ParaLstmGates para_lstm_gates(const CellStep& s, const At& at) {
  const D d;
  const V h = at.load(s.states[0]), c = at.load(s.states[1]);
  const V kept = hn::MulAdd(at.load(s.parameters[3]), c, at.load(s.gates[0]));
  const V f = fast::sigmoid(d, hn::MulAdd(at.load(s.parameters[0]), h, kept));
  const V z = fast::tanh(d, hn::MulAdd(at.load(s.parameters[2]), h, at.load(s.gates[2])));
  const V new_c = hn::MulAdd(f, hn::Sub(c, z), z), squashed = fast::tanh(d, new_c);
  const V read = hn::MulAdd(at.load(s.parameters[4]), new_c, at.load(s.gates[1]));
  const V o = fast::sigmoid(d, hn::MulAdd(at.load(s.parameters[1]), h, read));
  at.store(f, s.saved[0]);
  at.store(o, s.saved[1]);
  at.store(z, s.saved[2]);
  at.store(hn::Mul(o, squashed), s.new_states[0]);
  at.store(new_c, s.new_states[1]);
  return {c, f, o, z, squashed};
}

struct ParaLstmForward : CellStep {
  template <class At>
  HWY_INLINE void operator()(const At& at) const {
    para_lstm_gates(*this, at);
  }
};

struct ParaLstmLinearize : CellStep {
  template <class At>
  HWY_INLINE void operator()(const At& at) const {
    const auto [c, f, o, z, squashed] = para_lstm_gates(*this, at);
    const V df = hn::Mul(sigmoid_slope(f), hn::Sub(c, z)), d_o = hn::Mul(sigmoid_slope(o), squashed);
    const V dz = hn::Mul(hn::Sub(one(), f), one_minus_square(z));
    const V c_h = hn::MulAdd(at.load(parameters[0]), df, hn::Mul(at.load(parameters[2]), dz));
    const V c_c = hn::MulAdd(at.load(parameters[3]), df, f);
    const V h_c = hn::MulAdd(at.load(parameters[4]), d_o, hn::Mul(o, one_minus_square(squashed)));
    at.store(hn::MulAdd(c_h, h_c, hn::Mul(at.load(parameters[1]), d_o)), jacobian[0]);
    at.store(hn::Mul(c_c, h_c), jacobian[1]);
    at.store(c_h, jacobian[2]);
    at.store(c_c, jacobian[3]);
  }
};

struct ParaLstmBackward : CellGradient {
  template <class At>
  HWY_INLINE void operator()(const At& at) const {
    const V h = at.load(states[0]), c = at.load(states[1]), new_c = at.load(new_states[1]);
    const V f = at.load(saved[0]), o = at.load(saved[1]), z = at.load(saved[2]);
    const V squashed = fast::tanh(D(), new_c), dh = at.load(d_new_states[0]);
    const V d_o = hn::Mul(hn::Mul(dh, squashed), sigmoid_slope(o));
    const V direct = hn::MulAdd(hn::Mul(dh, o), one_minus_square(squashed), at.load(d_new_states[1]));
    const V dc = hn::MulAdd(d_o, at.load(parameters[4]), direct), kept = hn::Mul(dc, f);
    const V df = hn::Mul(hn::Mul(dc, hn::Sub(c, z)), sigmoid_slope(f));
    const V dz = hn::Mul(hn::Sub(dc, kept), one_minus_square(z));
    at.store(df, d_gates[0]);
    at.store(d_o, d_gates[1]);
    at.store(dz, d_gates[2]);
    at.store(hn::MulAdd(df, at.load(parameters[0]),
                        hn::MulAdd(d_o, at.load(parameters[1]), hn::Mul(dz, at.load(parameters[2])))),
             d_states[0]);
    at.store(hn::MulAdd(df, at.load(parameters[3]), kept), d_states[1]);
    at.store(hn::MulAdd(df, h, at.load(d_parameters[0])), d_parameters[0]);
    at.store(hn::MulAdd(d_o, h, at.load(d_parameters[1])), d_parameters[1]);
    at.store(hn::MulAdd(dz, h, at.load(d_parameters[2])), d_parameters[2]);
    at.store(hn::MulAdd(df, c, at.load(d_parameters[3])), d_parameters[3]);
    at.store(hn::MulAdd(d_o, new_c, at.load(d_parameters[4])), d_parameters[4]);
  }
};

void para_gru_forward(const CellStep& step) { for_each_vector(step.n, ParaGruForward{step}); }
void para_gru_linearize(const CellStep& step) { for_each_vector(step.n, ParaGruLinearize{step}); }
void para_gru_backward(const CellGradient& gradient) {
  for_each_vector(gradient.n, ParaGruBackward{gradient});
}
void para_lstm_forward(const CellStep& step) { for_each_vector(step.n, ParaLstmForward{step}); }
void para_lstm_linearize(const CellStep& step) { for_each_vector(step.n, ParaLstmLinearize{step}); }
void para_lstm_backward(const CellGradient& gradient) {
  for_each_vector(gradient.n, ParaLstmBackward{gradient});
}

}  // namespace
}  // namespace weft::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace weft::kernels {
WEFT_SIMD_DISPATCH(para_gru_forward, (const ops::CellStep& step), (step))
WEFT_SIMD_DISPATCH(para_gru_linearize, (const ops::CellStep& step), (step))
WEFT_SIMD_DISPATCH(para_gru_backward, (const ops::CellGradient& gradient), (gradient))
WEFT_SIMD_DISPATCH(para_lstm_forward, (const ops::CellStep& step), (step))
WEFT_SIMD_DISPATCH(para_lstm_linearize, (const ops::CellStep& step), (step))
WEFT_SIMD_DISPATCH(para_lstm_backward, (const ops::CellGradient& gradient), (gradient))
}  // namespace weft::kernels
#endif
