#include "ops/attention/attention.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "base/error.h"
#include "ops/attention/kernel.h"
#include "ops/attention/mask_tables.h"
#include "ops/parallel.h"
#include "ops/shape.h"
#include "ops/simd/dispatch.h"

namespace weft::ops {
namespace {

using kernels::AttentionProblem;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kOp = "attention";
constexpr int64_t kSmallRows = 8;  // queries of a key head; fewer are not worth the packing of the keys
constexpr int64_t kGrainFlops = int64_t{1} << 18;  // less work than this is not worth a thread

// fp32 with a contiguous last dimension.
at::Tensor wide(const at::Tensor& x) {
  const auto y = x.to(at::kFloat);
  return y.stride(-1) == 1 || y.size(-1) == 1 ? y : y.contiguous();
}

kernels::Heads heads_of(const at::Tensor& x) {
  return {x.const_data_ptr<float>(), x.stride(0), x.stride(1), x.stride(2)};
}

// q, k, v as from wide(); they and the tables must outlive the problem.
AttentionProblem problem_of(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const MaskTables& tables, int64_t sinks, double scale) {
  AttentionProblem p;
  p.batch = q.size(0), p.queries = q.size(1), p.keys = k.size(1), p.heads = q.size(2),
  p.key_heads = k.size(2);
  p.key_width = q.size(3), p.value_width = v.size(3);
  p.scale = static_cast<float>(scale == 0 ? 1 / std::sqrt(static_cast<double>(p.key_width)) : scale);
  p.q = heads_of(q), p.k = heads_of(k), p.v = heads_of(v);
  p.sinks = static_cast<int32_t>(std::min<int64_t>(sinks, std::numeric_limits<int32_t>::max()));
  use_mask_tables(p, tables);
  return p;
}

// Calls body(scratch, begin, end) on parts of [0, count) in parallel.
template <class Body>
void for_tasks(const AttentionProblem& p, int64_t count, const Body& body) {
  const int64_t flops = 2 * p.rows() * p.keys * (p.key_width + p.value_width) * p.batch * p.key_heads;
  const int64_t grain = std::max<int64_t>(1, kGrainFlops * count / std::max<int64_t>(1, flops));
  parallel_for(count, grain, [&](int64_t begin, int64_t end) {
    const auto scratch =
        std::make_unique_for_overwrite<float[]>(static_cast<size_t>(kernels::attention_scratch(p)));
    body(scratch.get(), begin, end);
  });
}

// Buffers for the transposed keys (and values); the problem points to them.
at::Tensor pack(simd::Isa isa, AttentionProblem& p, bool values) {
  const int64_t blocks = p.batch * p.key_heads * p.key_blocks(),
                width = p.key_width + (values ? p.value_width : 0);
  const auto buffer = at::empty({blocks * width * kernels::kKeyBlock}, at::kFloat);
  p.packed_k = buffer.mutable_data_ptr<float>();
  if (values) p.packed_v = p.packed_k + blocks * p.key_width * kernels::kKeyBlock;
  parallel_for(blocks, 4, [&](int64_t begin, int64_t end) { kernels::attention_pack(isa, p, begin, end); });
  return buffer;
}

AttentionResult run_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const MaskTables& tables, int64_t sinks, double scale) {
  const auto isa = isa_of(choose_kernel(q));
  const auto wide_q = wide(q), wide_k = wide(k), wide_v = wide(v);
  AttentionProblem p = problem_of(wide_q, wide_k, wide_v, tables, sinks, scale);
  const auto out = at::empty({p.batch, p.queries, p.heads, p.value_width}, at::kFloat);
  const auto lse = at::empty({p.batch, p.queries, p.heads}, at::kFloat);
  p.out = out.mutable_data_ptr<float>();
  p.lse = lse.mutable_data_ptr<float>();
  at::Tensor packed;
  if (p.rows() > kSmallRows) packed = pack(isa, p, false);
  for_tasks(p, p.batch * p.key_heads * p.row_blocks(), [&](float* scratch, int64_t begin, int64_t end) {
    kernels::attention_forward(isa, p, scratch, begin, end);
  });
  return {out.to(v.scalar_type()), lse};
}

// sum(dout out) - dlse for every row: what the softmax takes off the gradient of a probability.
at::Tensor delta_of(simd::Isa isa, const at::Tensor& out, const at::Tensor& dout, const at::Tensor& dlse) {
  const auto delta = at::empty(dlse.sizes(), dlse.options());
  const int64_t width = out.size(-1);
  parallel_for(delta.numel(), 256, [&](int64_t begin, int64_t end) {
    kernels::attention_delta(isa, out.const_data_ptr<float>(), dout.const_data_ptr<float>(),
                             dlse.const_data_ptr<float>(), width, delta.mutable_data_ptr<float>(), begin,
                             end);
  });
  return delta;
}

// Gradients of q, k and v.
variable_list run_backward(const variable_list& saved, const MaskTables& tables, int64_t sinks, double scale,
                           const variable_list& upstream) {
  const auto &q = saved[0], &k = saved[1], &v = saved[2], &lse = saved[4];
  const auto isa = isa_of(choose_kernel(q));
  const auto wide_q = wide(q), wide_k = wide(k), wide_v = wide(v), out = saved[3].to(at::kFloat).contiguous();
  const auto dout = upstream[0].to(at::kFloat).contiguous(), dlse = upstream[1].contiguous();
  AttentionProblem p = problem_of(wide_q, wide_k, wide_v, tables, sinks, scale);
  const auto delta = delta_of(isa, out, dout, dlse);
  const auto packed = pack(isa, p, true);
  const auto dq = at::zeros({p.batch, p.key_heads, p.queries, p.group(), p.key_width}, at::kFloat);
  const auto dk = at::empty(k.sizes(), wide_k.options()), dv = at::empty(v.sizes(), wide_v.options());
  p.lse = lse.mutable_data_ptr<float>();
  p.dout = dout.const_data_ptr<float>();
  p.delta = delta.const_data_ptr<float>();
  p.dq = dq.mutable_data_ptr<float>();
  p.dk = dk.mutable_data_ptr<float>();
  p.dv = dv.mutable_data_ptr<float>();

  // Both ways give the same bits; the first computes the probabilities once, the second has more tasks.
  const int64_t heads = p.batch * p.key_heads;
  if (heads >= 4 * at::get_num_threads() || at::get_num_threads() == 1 ||
      heads % at::get_num_threads() == 0) {
    for_tasks(p, heads, [&](float* scratch, int64_t begin, int64_t end) {
      kernels::attention_backward_all(isa, p, scratch, begin, end);
    });
  } else {
    for_tasks(p, heads * p.row_blocks(), [&](float* scratch, int64_t begin, int64_t end) {
      kernels::attention_backward_queries(isa, p, scratch, begin, end);
    });
    for_tasks(p, heads * p.key_blocks(), [&](float* scratch, int64_t begin, int64_t end) {
      kernels::attention_backward_keys(isa, p, scratch, begin, end);
    });
  }
  const auto rows = dq.mul_(p.scale).permute({0, 2, 1, 3, 4}).reshape(q.sizes());
  return {rows.to(q.scalar_type()), dk.to(k.scalar_type()), dv.to(v.scalar_type())};
}

class AttentionFunction : public torch::autograd::Function<AttentionFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& q, const at::Tensor& k,
                               const at::Tensor& v, const MaskTables& tables, int64_t sinks, double scale) {
    const auto result = run_forward(q, k, v, tables, sinks, scale);
    ctx->save_for_backward({q, k, v, result.out, result.lse});
    ctx->saved_data["tables"] = std::vector<at::Tensor>{tables.queries, tables.keys, tables.ranges};
    ctx->saved_data["sinks"] = sinks;
    ctx->saved_data["scale"] = scale;
    return {result.out, result.lse};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& upstream) {
    supported(!at::GradMode::is_enabled(),
              "{}: second derivatives need the reference; set WEFT_KERNEL=reference", kOp);
    const auto tables = ctx->saved_data["tables"].toTensorVector();
    auto gradients =
        run_backward(ctx->get_saved_variables(), {tables[0], tables[1], tables[2]},
                     ctx->saved_data["sinks"].toInt(), ctx->saved_data["scale"].toDouble(), upstream);
    gradients.resize(6);
    return gradients;
  }
};

void check_indices(const char* name, const at::Tensor& x, at::IntArrayRef shape, const at::Tensor& like) {
  if (!x.defined()) return;
  require_shape(kOp, name, x, shape);
  require(x.scalar_type() == at::kLong, "{}: {} has type {}, expected int64", kOp, name,
          c10::toString(x.scalar_type()));
  require(x.device() == like.device(), "{}: {} is on {}, expected {}", kOp, name, x.device().str(),
          like.device().str());
}

void check(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Mask& mask) {
  require_like(kOp, "q", q, q);
  require_like(kOp, "k", k, q);
  require_like(kOp, "v", v, q);
  require_shape(kOp, "q", q, {-1, -1, -1, -1});
  require_shape(kOp, "k", k, {q.size(0), -1, -1, q.size(3)});
  require_shape(kOp, "v", v, {q.size(0), k.size(1), k.size(2), -1});
  const int64_t heads = q.size(2), key_heads = k.size(2);
  require(key_heads >= 1 && heads % key_heads == 0,
          "{}: q has {} heads and k has {}; expected a multiple of k's", kOp, heads, key_heads);
  require(q.size(3) >= 1 && v.size(3) >= 1, "{}: head widths are {} and {}, expected at least 1", kOp,
          q.size(3), v.size(3));
  require(mask.window >= 0 && mask.sinks >= 0, "{}: window is {} and sinks {}, expected 0 or more", kOp,
          mask.window, mask.sinks);
  require(mask.q_segments.defined() == mask.k_segments.defined(),
          "{}: only {} is given, expected both or neither", kOp,
          mask.q_segments.defined() ? "q_segments" : "k_segments");
  check_indices("q_positions", mask.q_positions, {q.size(0), q.size(1)}, q);
  check_indices("k_positions", mask.k_positions, {k.size(0), k.size(1)}, q);
  check_indices("q_segments", mask.q_segments, {q.size(0), q.size(1)}, q);
  check_indices("k_segments", mask.k_segments, {k.size(0), k.size(1)}, q);
}

}  // namespace

AttentionResult attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Mask& mask,
                          double scale) {
  check(q, k, v, mask);
  const auto kernel = choose_kernel(q);
  const bool narrow = k.scalar_type() != at::kDouble && v.scalar_type() != at::kDouble;
  if (kernel != Kernel::reference && kernel != Kernel::cuda && narrow) {
    const auto tables = make_mask_tables(mask, q.size(0), q.size(1), k.size(1));
    const auto result = AttentionFunction::apply(q, k, v, tables, mask.sinks, scale);
    return {result[0], result[1]};
  }
  return reference::attention(q, k, v, mask, scale);
}

TORCH_LIBRARY_FRAGMENT(weft, m) {
  using Optional = std::optional<at::Tensor>;
  m.def(
      "attention(Tensor q, Tensor k, Tensor v, bool causal=True, int window=0, int sinks=0, Tensor? "
      "q_positions=None, "
      "Tensor? k_positions=None, Tensor? q_segments=None, Tensor? k_segments=None, float scale=0.0) -> "
      "(Tensor out, Tensor lse)",
      [](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, bool causal, int64_t window,
         int64_t sinks, const Optional& q_positions, const Optional& k_positions, const Optional& q_segments,
         const Optional& k_segments, double scale) {
        const at::Tensor none;
        const Mask mask{causal,
                        window,
                        sinks,
                        q_positions.value_or(none),
                        k_positions.value_or(none),
                        q_segments.value_or(none),
                        k_segments.value_or(none)};
        const auto result = attention(q, k, v, mask, scale);
        return std::make_tuple(result.out, result.lse);
      });
}

}  // namespace weft::ops
