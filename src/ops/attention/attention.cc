#include "ops/attention/attention.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cmath>
#include <memory>
#include <vector>

#include "base/error.h"
#include "ops/attention/cuda.h"
#include "ops/attention/kernel.h"
#include "ops/attention/mask_tables.h"
#include "ops/parallel.h"
#include "ops/recurrence.h"
#include "ops/shape.h"
#include "ops/simd/dispatch.h"

namespace weft::ops {
namespace {

using kernels::AttentionProblem;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kOp = "attention";
constexpr int64_t kGrainFlops = int64_t{1} << 18;  // less work than this is not worth a thread

at::Tensor with_rows(const at::Tensor& x) {
  return x.stride(-1) == 1 || x.size(-1) == 1 ? x : x.contiguous();
}

// fp32 with a contiguous last dimension.
at::Tensor wide(const at::Tensor& x) { return with_rows(x.to(at::kFloat)); }

// Keys and values as the kernels read them: one type, rows contiguous.
struct KeysAndValues {
  at::Tensor k, v, k_scale, v_scale;
};

KeysAndValues kernel_rows(const at::Tensor& k, const at::Tensor& v, const AttentionOptions& options) {
  if (k.scalar_type() == at::kChar)
    return {with_rows(k), with_rows(v), wide(options.k_scale), wide(options.v_scale)};
  const auto type = k.scalar_type() == v.scalar_type() ? k.scalar_type() : at::kFloat;
  return {with_rows(k.to(type)), with_rows(v.to(type)), {}, {}};
}

kernels::Heads heads_of(const at::Tensor& x) {
  return {x.const_data_ptr<float>(), x.stride(0), x.stride(1), x.stride(2)};
}

kernels::KeyRows rows_of(const at::Tensor& x, const at::Tensor& scale) {
  using kernels::Element;
  kernels::KeyRows rows;
  rows.type = x.scalar_type() == at::kBFloat16 ? Element::bf16
              : x.scalar_type() == at::kHalf   ? Element::fp16
              : x.scalar_type() == at::kChar   ? Element::int8
                                               : Element::fp32;
  rows.data = x.const_data_ptr();
  rows.batch = x.stride(0), rows.token = x.stride(1), rows.head = x.stride(2);
  if (scale.defined()) {
    rows.scale = scale.const_data_ptr<float>();
    rows.scale_batch = scale.stride(0), rows.scale_token = scale.stride(1), rows.scale_head = scale.stride(2);
    rows.group = x.size(3) / scale.size(3);
  }
  return rows;
}

// q as from wide(); it, the rows, the tables and the slopes must outlive the problem.
AttentionProblem problem_of(const at::Tensor& q, const KeysAndValues& rows, const at::Tensor& slopes,
                            const MaskTables& tables, const AttentionOptions& options) {
  AttentionProblem p;
  p.batch = q.size(0), p.queries = q.size(1), p.keys = rows.k.size(1), p.heads = q.size(2);
  p.key_heads = rows.k.size(2), p.key_width = q.size(3), p.value_width = rows.v.size(3);
  p.scale = static_cast<float>(options.scale == 0 ? 1 / std::sqrt(static_cast<double>(p.key_width))
                                                  : options.scale);
  p.softcap = static_cast<float>(options.softcap);
  p.slopes = slopes.defined() ? slopes.const_data_ptr<float>() : nullptr;
  p.q = heads_of(q), p.k = rows_of(rows.k, rows.k_scale), p.v = rows_of(rows.v, rows.v_scale);
  use_mask_tables(p, tables);
  return p;
}

at::Tensor flat_slopes(const at::Tensor& slopes) {
  return slopes.defined() ? slopes.to(at::kFloat).contiguous() : slopes;
}

at::ScalarType type_of_out(const at::Tensor& q, const at::Tensor& v) {
  return v.scalar_type() == at::kChar ? q.scalar_type() : at::promote_types(q.scalar_type(), v.scalar_type());
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

// Buffers for the transposed keys and, for the backward, values; the problem points to them. A forward pass that reads
// values of 16 or 8 bits several times has them widened too.
at::Tensor pack(simd::Isa isa, AttentionProblem& p, bool backward) {
  constexpr int64_t kRereads = 3;  // row blocks from which on that pays
  const bool widen = !backward && p.v.type != kernels::Element::fp32 && p.row_blocks() >= kRereads;
  const int64_t blocks = p.batch * p.key_heads * p.key_blocks(),
                width = p.key_width + (backward || widen ? p.value_width : 0);
  const auto buffer = at::empty({blocks * width * kernels::kKeyBlock}, at::kFloat);
  p.packed_k = buffer.mutable_data_ptr<float>();
  (backward ? p.packed_v : p.wide_v) =
      backward || widen ? p.packed_k + blocks * p.key_width * kernels::kKeyBlock : nullptr;
  parallel_for(blocks, 4, [&](int64_t begin, int64_t end) { kernels::attention_pack(isa, p, begin, end); });
  return buffer;
}

// Few rows: the keys are read where they stand, in ranges.
void run_decode(simd::Isa isa, const AttentionProblem& p) {
  if (p.batch * p.rows() == 0) return;
  const auto partial = at::empty({kernels::attention_partial_size(p)}, at::kFloat);
  float* parts = partial.mutable_data_ptr<float>();
  const int64_t splits = kernels::attention_splits(p), flops = 2 * p.rows() * p.key_heads *
                                                               kernels::kSplitBlocks * kernels::kKeyBlock *
                                                               (p.key_width + p.value_width);
  parallel_for(p.batch * splits, std::max<int64_t>(1, kGrainFlops / flops), [&](int64_t begin, int64_t end) {
    const auto scratch =
        std::make_unique_for_overwrite<float[]>(static_cast<size_t>(kernels::attention_decode_scratch(p)));
    kernels::attention_decode(isa, p, scratch.get(), parts, begin, end);
  });
  const int64_t merged = p.rows() * splits * p.value_width;
  parallel_for(p.batch * p.key_heads, 1 + kGrainFlops / (1 + merged), [&](int64_t begin, int64_t end) {
    kernels::attention_decode_merge(isa, p, parts, begin, end);
  });
}

AttentionResult run_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const at::Tensor& slopes, const MaskTables& tables,
                            const AttentionOptions& options) {
  const auto isa = isa_of(choose_kernel(q));
  const auto wide_q = wide(q), flat = flat_slopes(slopes);
  const auto rows = kernel_rows(k, v, options);
  AttentionProblem p = problem_of(wide_q, rows, flat, tables, options);
  const auto out = at::empty({p.batch, p.queries, p.heads, p.value_width}, at::kFloat);
  const auto lse = at::empty({p.batch, p.queries, p.heads}, at::kFloat);
  p.out = out.mutable_data_ptr<float>();
  p.lse = lse.mutable_data_ptr<float>();
  if (p.rows() <= kernels::kDecodeRows) {
    run_decode(isa, p);
  } else {
    const auto packed = pack(isa, p, false);
    for_tasks(p, p.batch * p.key_heads * p.row_blocks(), [&](float* scratch, int64_t begin, int64_t end) {
      kernels::attention_forward(isa, p, scratch, begin, end);
    });
  }
  return {out.to(type_of_out(q, v)), lse};
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

// Gradients of q, k, v and slopes; of the last three where they are wanted.
struct Wanted {
  bool k, v, slopes;
};

variable_list run_backward(const variable_list& saved, const MaskTables& tables,
                           const AttentionOptions& options, const Wanted& wanted,
                           const variable_list& upstream) {
  const auto &q = saved[0], &k = saved[1], &v = saved[2], &slopes = saved[3], &lse = saved[5];
  const auto isa = isa_of(choose_kernel(q));
  const auto wide_q = wide(q), flat = flat_slopes(slopes), out = saved[4].to(at::kFloat).contiguous();
  const auto rows = kernel_rows(k, v, options);
  const auto dout = upstream[0].to(at::kFloat).contiguous(), dlse = upstream[1].contiguous();
  AttentionProblem p = problem_of(wide_q, rows, flat, tables, options);
  const auto delta = delta_of(isa, out, dout, dlse);
  const auto packed = pack(isa, p, true);
  const auto dq = at::zeros({p.batch, p.key_heads, p.queries, p.group(), p.key_width}, at::kFloat);
  const auto floats = [](const at::Tensor& like, bool is_wanted) {
    return is_wanted ? at::empty(like.sizes(), at::kFloat) : at::Tensor();
  };
  const auto dk = floats(k, wanted.k), dv = floats(v, wanted.v);
  const auto dslopes = wanted.slopes ? at::zeros_like(lse) : at::Tensor();
  const auto data = [](const at::Tensor& x) { return x.defined() ? x.mutable_data_ptr<float>() : nullptr; };
  p.lse = lse.mutable_data_ptr<float>();
  p.dout = dout.const_data_ptr<float>();
  p.delta = delta.const_data_ptr<float>();
  p.dq = data(dq), p.dk = data(dk), p.dv = data(dv), p.dslopes = data(dslopes);

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
  const auto in_type = [](const at::Tensor& x, const at::Tensor& like) {
    return x.defined() ? x.to(like.scalar_type()) : x;
  };
  return {dq.mul_(p.scale).permute({0, 2, 1, 3, 4}).reshape(q.sizes()).to(q.scalar_type()), in_type(dk, k),
          in_type(dv, v),
          wanted.slopes ? dslopes.sum(at::IntArrayRef{0, 1}).to(slopes.scalar_type()) : at::Tensor()};
}

class AttentionFunction : public torch::autograd::Function<AttentionFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& q, const at::Tensor& k,
                               const at::Tensor& v, const std::optional<at::Tensor>& maybe_slopes,
                               const MaskTables& tables, const AttentionOptions& options) {
    const auto slopes = maybe_slopes.value_or(at::Tensor());
    const auto result = run_forward(q, k, v, slopes, tables, options);
    ctx->save_for_backward({q, k, v, slopes, result.out, result.lse});
    ctx->saved_data["tables"] =
        std::vector<at::Tensor>{tables.queries, tables.keys,       tables.ranges,   tables.phases,
                                tables.tree,    tables.tree_begin, options.k_scale, options.v_scale};
    ctx->saved_data["scale"] = options.scale;
    ctx->saved_data["softcap"] = options.softcap;
    return {result.out, result.lse};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& upstream) {
    require_first_order(kOp);
    const auto t = ctx->saved_data["tables"].toTensorVector();
    const auto saved = ctx->get_saved_variables();
    const Wanted wanted{ctx->needs_input_grad(1), ctx->needs_input_grad(2),
                        saved[3].defined() && ctx->needs_input_grad(3)};
    auto gradients = run_backward(saved, {t[0], t[1], t[2], t[3], t[4], t[5]},
                                  {.scale = ctx->saved_data["scale"].toDouble(),
                                   .softcap = ctx->saved_data["softcap"].toDouble(),
                                   .k_scale = t[6],
                                   .v_scale = t[7]},
                                  wanted, upstream);
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

void check_mask(const at::Tensor& q, const at::Tensor& k, const Mask& mask) {
  const int64_t batch = q.size(0), queries = q.size(1), keys = k.size(1), heads = q.size(2);
  require(mask.window >= 0 && mask.sinks >= 0, "{}: window is {} and sinks {}, expected 0 or more", kOp,
          mask.window, mask.sinks);
  require(mask.q_segments.defined() == mask.k_segments.defined(),
          "{}: only {} is given, expected both or neither", kOp,
          mask.q_segments.defined() ? "q_segments" : "k_segments");
  require(mask.q_tree.defined() == mask.tree_begin.defined(),
          "{}: only {} is given, expected both or neither", kOp,
          mask.q_tree.defined() ? "q_tree" : "tree_begin");
  check_indices("q_positions", mask.q_positions, {batch, queries}, q);
  check_indices("k_positions", mask.k_positions, {batch, keys}, q);
  check_indices("q_segments", mask.q_segments, {batch, queries}, q);
  check_indices("k_segments", mask.k_segments, {batch, keys}, q);
  check_indices("q_range", mask.q_range, {batch, queries, 2}, q);
  check_indices("q_prefix", mask.q_prefix, {batch, queries}, q);
  check_indices("q_tree", mask.q_tree, {batch, queries, -1}, q);
  check_indices("tree_begin", mask.tree_begin, {batch}, q);
  check_indices("stripes.offsets", mask.stripes.offsets, {heads}, q);
  const auto& stripes = mask.stripes;
  require(stripes.block >= 0 && (stripes.block == 0 || stripes.stride >= 1),
          "{}: stripes have block {} and stride {}, expected a block of 0 or more and a stride of at least 1",
          kOp, stripes.block, stripes.stride);
}

void check_scale(const char* name, const at::Tensor& scale, const at::Tensor& x) {
  require_like(kOp, name, scale, x);
  require_shape(kOp, name, scale, {x.size(0), x.size(1), x.size(2), -1});
  require(scale.size(3) >= 1 && x.size(3) % scale.size(3) == 0,
          "{}: {} is {}; its last size must divide the width {}", kOp, name, shape_text(scale), x.size(3));
}

void check(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Mask& mask,
           const AttentionOptions& options) {
  require_like(kOp, "q", q, q);
  const auto is_int8 = [](const at::Tensor& x) { return x.defined() && x.scalar_type() == at::kChar; };
  const bool int8 = is_int8(k);
  require(int8 == is_int8(v), "{}: k has type {} and v {}; int8 only together", kOp,
          k.defined() ? c10::toString(k.scalar_type()) : "none",
          v.defined() ? c10::toString(v.scalar_type()) : "none");
  for (const auto& [name, x] : {std::pair{"k", k}, {"v", v}}) {
    if (!int8) require_like(kOp, name, x, q);
    require(x.device() == q.device(), "{}: {} is on {}, expected {}", kOp, name, x.device().str(),
            q.device().str());
  }
  require_shape(kOp, "q", q, {-1, -1, -1, -1});
  require_shape(kOp, "k", k, {q.size(0), -1, -1, q.size(3)});
  require_shape(kOp, "v", v, {q.size(0), k.size(1), k.size(2), -1});
  const int64_t heads = q.size(2), key_heads = k.size(2);
  require(key_heads >= 1 && heads % key_heads == 0,
          "{}: q has {} heads and k has {}; expected a multiple of k's", kOp, heads, key_heads);
  require(q.size(3) >= 1 && v.size(3) >= 1, "{}: head widths are {} and {}, expected at least 1", kOp,
          q.size(3), v.size(3));
  if (int8) {
    check_scale("k_scale", options.k_scale, k);
    check_scale("v_scale", options.v_scale, v);
  }
  require(options.softcap >= 0, "{}: softcap is {}, expected 0 or more", kOp, options.softcap);
  if (options.slopes.defined()) {
    require_like(kOp, "slopes", options.slopes, q);
    require_shape(kOp, "slopes", options.slopes, {heads});
  }
  check_mask(q, k, mask);
}

bool by_reference(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& slopes) {
  const auto is_double = [](const at::Tensor& x) { return x.defined() && x.scalar_type() == at::kDouble; };
  return !is_cpu_kernel(choose_kernel(q)) || is_double(k) || is_double(v) || is_double(slopes);
}

}  // namespace

AttentionResult attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Mask& mask,
                          const AttentionOptions& options) {
  check(q, k, v, mask, options);
  if (internal::cuda_attention_takes(q, k, v, options.slopes))
    return internal::cuda_attention(q, k, v, mask, options);
  if (by_reference(q, k, v, options.slopes)) return reference::attention(q, k, v, mask, options);
  const auto tables = make_mask_tables(mask, q.size(0), q.size(1), k.size(1), q.size(2));
  const auto result = AttentionFunction::apply(q, k, v, optional_of(options.slopes), tables, options);
  return {result[0], result[1]};
}

std::pair<int64_t, int64_t> internal::visited_tiles(const Mask& mask, int64_t batch, int64_t queries,
                                                    int64_t keys, int64_t heads, int64_t key_heads) {
  const auto tables = make_mask_tables(mask, batch, queries, keys, heads);
  AttentionProblem p;
  p.batch = batch, p.queries = queries, p.keys = keys, p.heads = heads, p.key_heads = key_heads;
  use_mask_tables(p, tables);
  int64_t visited = 0;
  kernels::attention_count_tiles(isa_of(cpu_kernels().front()), p, &visited);
  return {visited, batch * key_heads * p.row_blocks() * p.key_blocks()};
}

TORCH_LIBRARY_FRAGMENT(weft, m) {
  using Optional = std::optional<at::Tensor>;
  m.def(
      "attention(Tensor q, Tensor k, Tensor v, bool causal=True, int window=0, int sinks=0, Tensor? "
      "q_positions=None, Tensor? k_positions=None, Tensor? q_segments=None, Tensor? k_segments=None, "
      "float scale=0.0, *, Tensor? q_range=None, Tensor? q_prefix=None, Tensor? q_tree=None, Tensor? "
      "tree_begin=None, int stripe_block=0, int stripe_stride=0, Tensor? stripe_offsets=None, float "
      "softcap=0.0, "
      "Tensor? slopes=None, Tensor? k_scale=None, Tensor? v_scale=None) -> (Tensor out, Tensor lse)",
      [](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, bool causal, int64_t window,
         int64_t sinks, const Optional& q_positions, const Optional& k_positions, const Optional& q_segments,
         const Optional& k_segments, double scale, const Optional& q_range, const Optional& q_prefix,
         const Optional& q_tree, const Optional& tree_begin, int64_t stripe_block, int64_t stripe_stride,
         const Optional& stripe_offsets, double softcap, const Optional& slopes, const Optional& k_scale,
         const Optional& v_scale) {
        const at::Tensor none;
        const Mask mask{causal,
                        window,
                        sinks,
                        q_positions.value_or(none),
                        k_positions.value_or(none),
                        q_segments.value_or(none),
                        k_segments.value_or(none),
                        q_range.value_or(none),
                        q_prefix.value_or(none),
                        q_tree.value_or(none),
                        tree_begin.value_or(none),
                        {stripe_block, stripe_stride, stripe_offsets.value_or(none)}};
        const auto result = attention(
            q, k, v, mask,
            {scale, softcap, slopes.value_or(none), k_scale.value_or(none), v_scale.value_or(none)});
        return std::make_tuple(result.out, result.lse);
      });
  m.def("quantize_rows(Tensor x, int group=0) -> (Tensor values, Tensor scale)",
        [](const at::Tensor& x, int64_t group) {
          const auto rows = quantize_rows(x, group);
          return std::make_tuple(rows.values, rows.scale);
        });
}

}  // namespace weft::ops
