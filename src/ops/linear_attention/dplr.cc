#include "ops/linear_attention/dplr.h"

#include <torch/csrc/autograd/custom_function.h>

#include "ops/linear_attention/chunks.h"
#include "ops/linear_attention/inputs.h"
#include "ops/linear_attention/kernel_dplr.h"
#include "ops/recurrence.h"

namespace weft::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

kernels::DplrProblem dplr_problem(const LinearAttention& in) {
  kernels::DplrProblem p{problem_of(in)};
  p.erase_read = rows_of(in.erase_read), p.erase_write = rows_of(in.erase_write);
  p.erase_heads = in.erase_read.size(2);
  return p;
}

struct Forward {
  at::Tensor y, state, states, recalled;
};

// states and recalled, of use to the backward only, when `keep`.
Forward run_forward(const LinearAttention& in, simd::Isa isa, bool keep) {
  auto p = dplr_problem(in);
  const ChunkTable table(p.batch, p.tokens, p.chunk, in.starts);
  table.use(p);
  const auto values = [&] { return at::empty({p.batch, p.tokens, p.heads, p.value_width}, at::kFloat); };
  Forward out{values(), at::empty({p.batch, p.heads, p.key_width, p.value_width}, at::kFloat), {}, {}};
  if (keep) {
    out.states = at::empty({table.chunks(), p.heads, p.key_width, p.value_width}, at::kFloat);
    out.recalled = values();
  }
  p.y = mutable_data_of(out.y), p.state = mutable_data_of(out.state), p.states = mutable_data_of(out.states);
  p.recalled = mutable_data_of(out.recalled);
  for_heads(p, kernels::dplr_forward_scratch(p), [&](float* scratch, int64_t begin, int64_t end) {
    kernels::dplr_forward(isa, p, scratch, begin, end);
  });
  return out;
}

// The inputs of the autograd function, in its order.
enum Input { kQ, kK, kV, kEraseRead, kEraseWrite, kLogDecay, kWrite, kInitialState, kInputs };

class DplrFunction final : public torch::autograd::Function<DplrFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& q, const at::Tensor& k,
                               const at::Tensor& v, const at::Tensor& erase_read,
                               const at::Tensor& erase_write, const Optional& log_decay,
                               const Optional& write, const Optional& initial_state, const Optional& starts,
                               double scale, int64_t isa) {
    const LinearAttention in{.q = q,
                             .k = k,
                             .v = v,
                             .log_decay = tensor(log_decay),
                             .erase_read = erase_read,
                             .erase_write = erase_write,
                             .write = tensor(write),
                             .scale = scale,
                             .initial_state = tensor(initial_state),
                             .starts = tensor(starts)};
    const auto out = run_forward(in, static_cast<simd::Isa>(isa), true);
    ctx->save_for_backward({q, k, v, erase_read, erase_write, in.log_decay, in.write, in.initial_state,
                            in.starts, out.states, out.recalled});
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["isa"] = isa;
    ctx->set_materialize_grads(false);
    return {out.y, out.state};
  }

  static variable_list backward(AutogradContext* ctx, variable_list upstream) {
    require_first_order("linear_attention");
    const auto x = ctx->get_saved_variables();
    const LinearAttention in{.q = x[kQ],
                             .k = x[kK],
                             .v = x[kV],
                             .log_decay = x[kLogDecay],
                             .erase_read = x[kEraseRead],
                             .erase_write = x[kEraseWrite],
                             .write = x[kWrite],
                             .scale = ctx->saved_data["scale"].toDouble(),
                             .initial_state = x[kInitialState],
                             .starts = x[kInputs]};
    auto p = dplr_problem(in);
    const ChunkTable table(p.batch, p.tokens, p.chunk, in.starts);
    table.use(p);
    p.states = mutable_data_of(x[kInputs + 1]), p.recalled = mutable_data_of(x[kInputs + 2]);

    const auto dy =
        upstream[0].defined() ? upstream[0].contiguous() : at::zeros_like(in.v, at::MemoryFormat::Contiguous);
    const auto dstate = upstream[1].defined() ? upstream[1].contiguous() : at::Tensor();
    variable_list d(kInputs);
    size_t edge = 0;  // only tensors that were given have one
    const auto make = [&](Input input, at::IntArrayRef sizes) {
      if (x[input].defined() && ctx->needs_input_grad(edge++)) d[input] = at::empty(sizes, at::kFloat);
    };
    const int64_t decay_width = p.decay == kernels::Decay::vector ? p.key_width : 1;
    const std::vector<int64_t> keys{p.batch, p.tokens, p.heads, p.key_width};
    make(kQ, keys), make(kK, keys), make(kV, {p.batch, p.tokens, p.heads, p.value_width});
    make(kEraseRead, keys), make(kEraseWrite, keys);
    make(kLogDecay, {p.batch, p.tokens, p.heads, decay_width});
    make(kWrite, {p.batch, p.tokens, p.heads});
    make(kInitialState, {p.batch, p.heads, p.key_width, p.value_width});
    const kernels::DplrGradients g{.dy = data_of(dy),
                                   .dstate = data_of(dstate),
                                   .dq = mutable_data_of(d[kQ]),
                                   .dk = mutable_data_of(d[kK]),
                                   .derase_read = mutable_data_of(d[kEraseRead]),
                                   .derase_write = mutable_data_of(d[kEraseWrite]),
                                   .dv = mutable_data_of(d[kV]),
                                   .dlog_decay = mutable_data_of(d[kLogDecay]),
                                   .dwrite = mutable_data_of(d[kWrite]),
                                   .dinitial = mutable_data_of(d[kInitialState])};
    const auto isa = static_cast<simd::Isa>(ctx->saved_data["isa"].toInt());
    for_heads(p, kernels::dplr_backward_scratch(p), [&](float* scratch, int64_t begin, int64_t end) {
      kernels::dplr_backward(isa, p, g, scratch, begin, end);
    });
    for (const auto input : {kQ, kK}) d[input] = sum_groups(d[input], p.key_heads);
    for (const auto input : {kEraseRead, kEraseWrite}) d[input] = sum_groups(d[input], p.erase_heads);
    d[kLogDecay] = decay_gradient(d[kLogDecay], in.log_decay);
    d.resize(kInputs + 3);  // starts, scale, isa
    return d;
  }
};

}  // namespace

LinearAttentionResult dplr_attention(const LinearAttention& in, simd::Isa isa) {
  if (!wants_gradient(in)) {
    const auto out = run_forward(in, isa, false);
    return {out.y, out.state};
  }
  const auto out = DplrFunction::apply(in.q, in.k, in.v, in.erase_read, in.erase_write,
                                       optional(in.log_decay), optional(in.write), optional(in.initial_state),
                                       optional(in.starts), in.scale, static_cast<int64_t>(isa));
  return {out[0], out[1]};
}

at::Tensor dplr_step(const LinearAttention& in, simd::Isa isa) {
  auto p = dplr_problem(in);
  const auto starts = in.starts.defined() ? in.starts.contiguous() : at::Tensor();
  if (starts.defined()) p.fresh = reinterpret_cast<const uint8_t*>(starts.const_data_ptr<bool>());
  const auto y = at::empty({p.batch, 1, p.heads, p.value_width}, at::kFloat);
  p.y = mutable_data_of(y), p.state = mutable_data_of(in.initial_state);
  parallel_for(p.batch * p.heads, step_grain(p), [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(static_cast<size_t>(kernels::dplr_step_scratch(p)));
    kernels::dplr_step(isa, p, scratch.data(), begin, end);
  });
  return y;
}

}  // namespace weft::ops
