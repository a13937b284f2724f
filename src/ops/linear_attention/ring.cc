#include "ops/linear_attention/ring.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <c10/core/GradMode.h>
#include <torch/library.h>

#include "base/error.h"
#include "ops/kernel_choice.h"
#include "ops/linear_attention/checks.h"
#include "ops/linear_attention/cuda.h"
#include "ops/linear_attention/inputs.h"
#include "ops/linear_attention/kernel_ring.h"
#include "ops/shape.h"
#include "ops/simd/dispatch.h"

namespace weft::ops {
namespace {

int64_t ring_rows(const LinearAttention& in) { return in.erase_read.defined() ? 2 : 1; }

int64_t ring_decay_width(const LinearAttention& in) {
  if (!in.log_decay.defined()) return 0;
  return in.log_decay.dim() == 4 ? in.k.size(3) : 1;
}

// The sizes of a ring agree with each other, and its lengths, where reading them is free, with its capacity.
void check_ring(const char* op, const LinearAttentionRing& ring) {
  const auto& s = ring.state;
  require(s.defined() && s.dim() == 4 && s.is_contiguous(),
          "{}: the ring's state is {}, expected contiguous [batch, heads, key width, value width]", op,
          shape_text(s));
  require(ring.keys.defined() && ring.keys.dim() == 5 && ring.keys.size(2) > 0,
          "{}: the ring's keys are {}, expected [batch, heads, capacity, rows, key width]", op,
          shape_text(ring.keys));
  const int64_t batch = s.size(0), heads = s.size(1), capacity = ring.keys.size(2), rows = ring.keys.size(3);
  require_shape(op, "keys of the ring", ring.keys, {batch, heads, capacity, rows, s.size(2)});
  require_shape(op, "values of the ring", ring.values, {batch, heads, capacity, rows, s.size(3)});
  require_shape(op, "decays of the ring", ring.decays, {batch, heads, capacity, -1});
  for (const auto* x : {&ring.keys, &ring.values, &ring.decays})
    require(x->is_contiguous() && x->scalar_type() == s.scalar_type() && x->device() == s.device(),
            "{}: tensors of the ring must be contiguous and of the type and on the device of its state, {}",
            op, c10::toString(s.scalar_type()));
  require_shape(op, "length of the ring", ring.length, {batch});
  require(ring.length.scalar_type() == at::kLong && ring.length.device() == s.device() &&
              ring.length.is_contiguous(),
          "{}: length of the ring must be contiguous int64 on {}", op, s.device().str());
  require(ring.keep >= 0 && ring.keep < capacity, "{}: keep is {}, expected 0 to {}", op, ring.keep,
          capacity - 1);
  if (!ring.length.is_cpu()) return;
  const int64_t* length = ring.length.const_data_ptr<int64_t>();
  for (int64_t b = 0; b < batch; ++b)
    require(length[b] >= 0 && length[b] <= capacity, "{}: length of the ring is {}, expected 0 to {}", op,
            length[b], capacity);
}

void check_step(const LinearAttention& in, const LinearAttentionRing& ring) {
  constexpr auto op = "linear_attention_ring_step";
  check_linear_attention(op, in);
  check_ring(op, ring);
  require(in.q.defined(), "{}: q is missing", op);
  require(in.v.size(1) == 1, "{}: v is {}, expected one token", op, shape_text(in.v));
  require(!in.initial_state.defined(), "{}: initial_state is given; the state is the ring's", op);
  require_shape(op, "state of the ring", ring.state,
                {in.v.size(0), in.v.size(2), in.k.size(3), in.v.size(3)});
  require(ring.state.scalar_type() == accumulate_type(in.v), "{}: the ring's state has type {}, expected {}",
          op, c10::toString(ring.state.scalar_type()), c10::toString(accumulate_type(in.v)));
  require(
      ring.keys.size(3) == ring_rows(in) && ring.decays.size(3) == ring_decay_width(in),
      "{}: the ring has {} rows and {} decays for a token, this one has {} and {}; the form must not change",
      op, ring.keys.size(3), ring.decays.size(3), ring_rows(in), ring_decay_width(in));
}

void use_ring(kernels::RingProblem& p, const LinearAttentionRing& ring) {
  p.batch = ring.state.size(0), p.heads = ring.state.size(1);
  p.key_width = ring.state.size(2), p.value_width = ring.state.size(3);
  p.capacity = ring.keys.size(2), p.rows = ring.keys.size(3), p.decay_width = ring.decays.size(3);
  p.keep = ring.keep, p.length = ring.length.const_data_ptr<int64_t>();
  p.state = mutable_data_of(ring.state), p.keys = mutable_data_of(ring.keys);
  p.values = mutable_data_of(ring.values), p.decays = mutable_data_of(ring.decays);
}

template <class Body>
void for_ring_heads(const kernels::RingProblem& p, const Body& body) {
  const auto size = static_cast<size_t>(kernels::ring_scratch(p));
  parallel_for(p.batch * p.heads, step_grain(p), [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(size);
    body(scratch.data(), begin, end);
  });
}

}  // namespace

LinearAttentionRing linear_attention_ring(const LinearAttention& in, int64_t capacity) {
  constexpr auto op = "linear_attention_ring";
  check_linear_attention(op, in);
  require(capacity > 0, "{}: capacity is {}, expected at least 1", op, capacity);
  const int64_t batch = in.v.size(0), heads = in.v.size(2), key_width = in.k.size(3),
                value_width = in.v.size(3), rows = ring_rows(in);
  const auto options = in.v.options().dtype(accumulate_type(in.v));
  LinearAttentionRing ring;
  ring.state = in.initial_state.defined() ? in.initial_state.to(options.dtype()).contiguous()
                                          : at::zeros({batch, heads, key_width, value_width}, options);
  ring.length = at::zeros({batch}, options.dtype(at::kLong));
  ring.keys = at::zeros({batch, heads, capacity, rows, key_width}, options);
  ring.values = at::zeros({batch, heads, capacity, rows, value_width}, options);
  ring.decays = at::zeros({batch, heads, capacity, ring_decay_width(in)}, options);
  return ring;
}

at::Tensor linear_attention_ring_step(const LinearAttention& in, LinearAttentionRing& ring) {
  check_step(in, ring);
  const c10::NoGradGuard no_grad;
  const Kernel kernel = choose_kernel(in.v);
  if (kernel == Kernel::cuda)
    if (const auto y = cuda_linear_attention_ring_step(in, ring)) return *y;
  if (kernel == Kernel::reference || kernel == Kernel::cuda)
    return reference::linear_attention_ring_step(in, ring);
  const auto x = kernel_inputs(in);
  kernels::RingProblem p{kernels::DplrProblem{problem_of(x)}};
  if (x.erase_read.defined()) {
    p.erase_read = rows_of(x.erase_read), p.erase_write = rows_of(x.erase_write);
    p.erase_heads = x.erase_read.size(2);
  }
  use_ring(p, ring);
  const auto starts = in.starts.defined() ? in.starts.contiguous() : at::Tensor();
  if (starts.defined()) p.fresh = reinterpret_cast<const uint8_t*>(starts.const_data_ptr<bool>());
  const auto y = at::empty({p.batch, 1, p.heads, p.value_width}, at::kFloat);
  p.y = mutable_data_of(y);
  for_ring_heads(p, [&](float* scratch, int64_t begin, int64_t end) {
    kernels::linear_attention_ring_step(isa_of(kernel), p, scratch, begin, end);
  });
  int64_t* length = ring.length.mutable_data_ptr<int64_t>();
  for (int64_t b = 0; b < p.batch; ++b) length[b] = kernels::ring_length(p, b) + 1;
  return y.to(in.v.scalar_type());
}

void linear_attention_ring_roll_back(LinearAttentionRing& ring, const at::Tensor& length) {
  constexpr auto op = "linear_attention_ring_roll_back";
  check_ring(op, ring);
  require_shape(op, "length", length, ring.length.sizes());
  require(length.scalar_type() == at::kLong, "{}: length has type {}, expected int64", op,
          c10::toString(length.scalar_type()));
  if (!ring.length.is_cpu()) {
    ring.length.copy_(at::minimum(length.to(ring.length.device()), ring.length).clamp_min(0));
    return;
  }
  const auto wanted = length.cpu().contiguous();
  for (int64_t b = 0; b < wanted.numel(); ++b) {
    const int64_t has = ring.length.const_data_ptr<int64_t>()[b], left = wanted.const_data_ptr<int64_t>()[b];
    require(left >= 0 && left <= has, "{}: length of sequence {} is {}, expected 0 to {}", op, b, left, has);
  }
  ring.length.copy_(wanted);
}

void linear_attention_ring_fold(LinearAttentionRing& ring) {
  check_ring("linear_attention_ring_fold", ring);
  const c10::NoGradGuard no_grad;
  const Kernel kernel = choose_kernel(ring.state);
  if (kernel == Kernel::cuda && cuda_linear_attention_ring_fold(ring)) return;
  if (kernel == Kernel::reference || kernel == Kernel::cuda)
    return reference::linear_attention_ring_fold(ring);
  kernels::RingProblem p;
  use_ring(p, ring);
  for_ring_heads(p, [&](float* scratch, int64_t begin, int64_t end) {
    kernels::linear_attention_ring_fold(isa_of(kernel), p, scratch, begin, end);
  });
  ring.length.zero_();
}

namespace {

at::Tensor ring_step_operator(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                              const at::Tensor& state, const at::Tensor& length, const at::Tensor& keys,
                              const at::Tensor& values, const at::Tensor& decays, int64_t keep,
                              const Optional& log_decay, const Optional& beta, const Optional& write,
                              const Optional& bonus, double scale, const Optional& starts,
                              const Optional& erase_read, const Optional& erase_write) {
  LinearAttentionRing ring{state, length, keys, values, decays, keep};
  return linear_attention_ring_step({.q = q,
                                     .k = k,
                                     .v = v,
                                     .log_decay = tensor(log_decay),
                                     .beta = tensor(beta),
                                     .erase_read = tensor(erase_read),
                                     .erase_write = tensor(erase_write),
                                     .write = tensor(write),
                                     .bonus = tensor(bonus),
                                     .scale = scale,
                                     .starts = tensor(starts)},
                                    ring);
}

void ring_fold_operator(const at::Tensor& state, const at::Tensor& length, const at::Tensor& keys,
                        const at::Tensor& values, const at::Tensor& decays) {
  LinearAttentionRing ring{state, length, keys, values, decays, 0};
  linear_attention_ring_fold(ring);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(weft, m) {
  m.def(
      "linear_attention_ring_step(Tensor q, Tensor k, Tensor v, Tensor(a!) state, Tensor(b!) length, "
      "Tensor(c!) keys, Tensor(d!) values, Tensor(e!) decays, int keep=0, Tensor? log_decay=None, Tensor? "
      "beta=None, Tensor? write=None, Tensor? bonus=None, float scale=0., Tensor? starts=None, Tensor? "
      "erase_read=None, Tensor? erase_write=None) -> Tensor",
      ring_step_operator);
  m.def(
      "linear_attention_ring_fold(Tensor(a!) state, Tensor(b!) length, Tensor(c!) keys, Tensor(d!) values, "
      "Tensor(e!) decays) -> ()",
      ring_fold_operator);
}

}  // namespace weft::ops
