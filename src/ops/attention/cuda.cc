// Attention on a GPU: dense masks by the library's kernels, everything else by ours.
#include "ops/attention/cuda.h"

#include <ATen/Context.h>
#include <ATen/Functions.h>
#include <torch/csrc/autograd/custom_function.h>

#include <array>
#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include "ops/attention/kernel_cuda.h"
#include "ops/cuda_kernels.h"
#include "ops/cuda_tensors.h"
#include "ops/kernel_choice.h"
#include "ops/recurrence.h"

namespace weft::ops {
namespace {

using kernels::AttentionCuda;
using kernels::AttentionCudaTable;
using kernels::AttentionDevice;
using kernels::AttentionRows;
using kernels::CudaType;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kOp = "attention";

AttentionRows rows_of(const at::Tensor& x, const at::Tensor& scale = {}) {
  AttentionRows rows;
  rows.data = x.const_data_ptr();
  rows.type = cuda_type(x);
  rows.batch = x.stride(0), rows.token = x.stride(1), rows.head = x.stride(2);
  if (scale.defined()) {
    rows.scale = scale.const_data_ptr<float>();
    rows.scale_batch = scale.stride(0), rows.scale_token = scale.stride(1), rows.scale_head = scale.stride(2);
    rows.group = static_cast<int>(x.size(3) / scale.size(3));
  }
  return rows;
}

kernels::AttentionOut out_of(const at::Tensor& x) {
  return x.defined() ? kernels::AttentionOut{x.mutable_data_ptr(), cuda_type(x)} : kernels::AttentionOut{};
}

AttentionDevice device_of(const CudaLaunch& launch) {
  return {launch.capability(), launch.multiprocessors(), launch.stream()};
}

// Inputs as the kernels read them; they must outlive the problem.
struct Inputs {
  at::Tensor q, k, v, slopes, k_scale, v_scale;

  Inputs(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& slopes,
         const AttentionOptions& options)
      : q(loadable_rows(q)), k(loadable_rows(k)), v(loadable_rows(v)), slopes(slopes) {
    if (slopes.defined()) this->slopes = slopes.to(at::kFloat).contiguous();
    if (options.k_scale.defined()) k_scale = options.k_scale.to(at::kFloat).contiguous();
    if (options.v_scale.defined()) v_scale = options.v_scale.to(at::kFloat).contiguous();
  }

  AttentionCuda problem(const AttentionOptions& options) const {
    AttentionCuda p;
    p.batch = static_cast<int>(q.size(0)), p.queries = static_cast<int>(q.size(1));
    p.keys = static_cast<int>(k.size(1)), p.heads = static_cast<int>(q.size(2));
    p.key_heads = static_cast<int>(k.size(2)), p.key_width = static_cast<int>(q.size(3));
    p.value_width = static_cast<int>(v.size(3));
    p.scale = static_cast<float>(options.scale == 0 ? 1 / std::sqrt(static_cast<double>(q.size(3)))
                                                    : options.scale);
    p.softcap = static_cast<float>(options.softcap);
    p.slopes = slopes.defined() ? slopes.const_data_ptr<float>() : nullptr;
    p.q = rows_of(q), p.k = rows_of(k, k_scale), p.v = rows_of(v, v_scale);
    return p;
  }
};

// The mask on the device, and what its pointers point to.
struct MaskOnDevice {
  kernels::AttentionMask tables;
  std::vector<at::Tensor> held;

  MaskOnDevice(const Mask& mask, const AttentionCuda& p, const at::Tensor& like,
               const AttentionCudaTable& kernel, const AttentionDevice& device) {
    kernels::AttentionMaskInput in;
    in.causal = mask.causal, in.window = mask.window, in.sinks = mask.sinks;
    in.q_positions = data(mask.q_positions), in.k_positions = data(mask.k_positions);
    in.q_segments = data(mask.q_segments), in.k_segments = data(mask.k_segments);
    in.q_range = data(mask.q_range), in.q_prefix = data(mask.q_prefix);
    in.q_tree = data(mask.q_tree), in.tree_begin = data(mask.tree_begin);
    in.tree_words = mask.q_tree.defined() ? mask.q_tree.size(2) : 0;
    in.stripe_block = mask.stripes.block, in.stripe_stride = mask.stripes.stride;
    if (in.stripe_block > 0) in.stripe_offsets = data(mask.stripes.offsets);
    const int64_t size = kernel.mask_size(in, p.batch, p.queries, p.keys, p.heads);
    held.push_back(at::empty({size}, like.options().dtype(at::kInt)));
    check_launch(kOp, kernel.mask_tables(in, p, held.back().mutable_data_ptr<int32_t>(), tables, device));
  }

 private:
  const int64_t* data(const at::Tensor& x) {
    if (!x.defined()) return nullptr;
    held.push_back(x.contiguous());
    return held.back().const_data_ptr<int64_t>();
  }
};

at::ScalarType type_of_out(const at::Tensor& q, const at::Tensor& v) {
  return v.scalar_type() == at::kChar ? q.scalar_type() : at::promote_types(q.scalar_type(), v.scalar_type());
}

// What the backward pass needs beside the tensors that autograd keeps.
struct Saved : torch::CustomClassHolder {
  MaskOnDevice mask;
  AttentionOptions options;
  Saved(MaskOnDevice mask, const AttentionOptions& options) : mask(std::move(mask)), options(options) {}
};

variable_list run_backward(const variable_list& saved, const Saved& more, const std::vector<bool>& wanted,
                           const variable_list& upstream) {
  const auto &q = saved[0], &k = saved[1], &v = saved[2], &slopes = saved[3], &out = saved[4],
             &lse = saved[5];
  const auto& kernel = *CudaKernels<AttentionCudaTable>::get();
  const CudaLaunch launch(q);
  const Inputs in(q, k, v, slopes, more.options);
  AttentionCuda p = in.problem(more.options);
  p.mask = more.mask.tables;
  const auto dout = upstream[0].defined() ? loadable_rows(upstream[0]) : at::zeros_like(out);
  const auto dlse = upstream[1].defined() ? upstream[1].contiguous() : at::Tensor();
  const auto floats = lse.options();
  const auto statistics =
      at::empty({2, p.batch, p.heads, p.mask.query_tiles * int64_t{kernels::kMaskTile}}, floats);
  const auto dq = at::empty(q.sizes(), q.options());
  const auto dk = wanted[1] ? at::empty(k.sizes(), k.options()) : at::Tensor(),
             dv = wanted[2] ? at::empty(v.sizes(), v.options()) : at::Tensor(),
             dslopes = slopes.defined() && wanted[3] ? at::empty_like(lse) : at::Tensor();
  p.out = out_of(out);
  p.lse = lse.mutable_data_ptr<float>();
  p.dout = rows_of(dout);
  p.dlse = dlse.defined() ? dlse.const_data_ptr<float>() : nullptr;
  p.lse2 = statistics.mutable_data_ptr<float>();
  p.delta = p.lse2 + statistics.stride(0);
  p.dq = out_of(dq), p.dk = out_of(dk), p.dv = out_of(dv);
  p.dslopes = dslopes.defined() ? dslopes.mutable_data_ptr<float>() : nullptr;
  check_launch(kOp, kernel.backward(p, device_of(launch)));
  return {dq, dk, dv,
          dslopes.defined() ? dslopes.sum(at::IntArrayRef{0, 1}).to(slopes.scalar_type()) : at::Tensor()};
}

class CudaAttention : public torch::autograd::Function<CudaAttention> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& q, const at::Tensor& k,
                               const at::Tensor& v, const std::optional<at::Tensor>& maybe_slopes,
                               const Mask& mask, const AttentionOptions& options) {
    const auto slopes = maybe_slopes.value_or(at::Tensor());
    const auto& kernel = *CudaKernels<AttentionCudaTable>::get();
    const CudaLaunch launch(q);
    const auto device = device_of(launch);
    const Inputs in(q, k, v, slopes, options);
    AttentionCuda p = in.problem(options);
    MaskOnDevice on_device(mask, p, q, kernel, device);
    p.mask = on_device.tables;
    const auto out =
        at::empty({p.batch, p.queries, p.heads, p.value_width}, q.options().dtype(type_of_out(q, v)));
    const auto lse = at::empty({p.batch, p.queries, p.heads}, q.options().dtype(at::kFloat));
    p.out = out_of(out);
    p.lse = lse.mutable_data_ptr<float>();
    const int64_t scratch_size = kernel.decode_scratch(p, device);
    const auto scratch = at::empty({scratch_size}, lse.options());
    check_launch(kOp, scratch_size > 0 ? kernel.decode(p, scratch.mutable_data_ptr<float>(), device)
                                       : kernel.forward(p, device));
    ctx->save_for_backward({q, k, v, slopes, out, lse});
    ctx->saved_data["more"] =
        c10::IValue::make_capsule(c10::make_intrusive<Saved>(std::move(on_device), options));
    ctx->set_materialize_grads(false);
    return {out, lse};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& upstream) {
    require_first_order(kOp);
    const auto more = ctx->saved_data["more"].toCapsule();
    std::vector<bool> wanted;
    const auto saved = ctx->get_saved_variables();
    for (size_t i = 0; i < 4; ++i) wanted.push_back(saved[i].defined() && ctx->needs_input_grad(i));
    auto gradients = run_backward(saved, static_cast<const Saved&>(*more), wanted, upstream);
    gradients.resize(6);
    return gradients;
  }
};

// Dense attention by the library: cuDNN on Hopper, else its flash kernel.
struct Dense {
  bool cudnn, causal;
  double scale;
};

std::optional<Dense> dense_case(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                const Mask& mask, const AttentionOptions& options) {
  constexpr int64_t kFewest = 128;  // queries and keys, below which the library is not faster
  const auto type = q.scalar_type();
  const bool narrow = type != at::kFloat && k.scalar_type() == type && v.scalar_type() == type;
  bool dense = mask.window == 0 && mask.stripes.block == 0;
  for (const at::Tensor* x : {&mask.q_positions, &mask.k_positions, &mask.q_segments, &mask.q_range,
                              &mask.q_prefix, &mask.q_tree, &options.slopes})
    dense = dense && !x->defined();
  const int64_t queries = q.size(1), keys = k.size(1), width = q.size(3);
  if (!narrow || !dense || options.softcap > 0 || options.scale < 0 || (mask.causal && queries != keys) ||
      q.size(2) != k.size(2) || width != v.size(3) || width % 8 != 0 || width > 128 || queries < kFewest ||
      keys < kFewest || q.size(0) == 0)
    return std::nullopt;
  const at::Context& context = at::globalContext();
  const bool cudnn = context.userEnabledCuDNNSDP() && CudaLaunch(q).capability() == 90;
  if (context.deterministicAlgorithms() || (!cudnn && !context.userEnabledFlashSDP())) return std::nullopt;
  return Dense{cudnn, mask.causal,
               options.scale == 0 ? 1 / std::sqrt(static_cast<double>(width)) : options.scale};
}

at::Tensor heads_first(const at::Tensor& x) { return loadable_rows(x).transpose(1, 2); }

struct SavedDense : torch::CustomClassHolder {
  Dense dense;
  std::array<at::Tensor, 5>
      lists;  // of sequences and random numbers, empty or unused; and lse as the library has it
  int64_t queries = 0, keys = 0;  // the most of a sequence
};

class DenseAttention : public torch::autograd::Function<DenseAttention> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& q, const at::Tensor& k,
                               const at::Tensor& v, const Dense& dense) {
    const c10::DeviceGuard guard(q.device());
    const auto q_heads = heads_first(q), k_heads = heads_first(k), v_heads = heads_first(v);
    auto [out, lse, q_starts, k_starts, queries, keys, seed, offset, debug] =
        dense.cudnn ? at::_scaled_dot_product_cudnn_attention(q_heads, k_heads, v_heads, std::nullopt, true,
                                                              0, dense.causal, false, dense.scale)
                    : at::_scaled_dot_product_flash_attention(q_heads, k_heads, v_heads, 0, dense.causal,
                                                              false, dense.scale);
    const auto result = out.transpose(1, 2);
    const auto rows = lse.reshape({q.size(0), q.size(2), q.size(1)}).transpose(1, 2).contiguous();
    auto more = c10::make_intrusive<SavedDense>();
    more->dense = dense;
    more->lists = {q_starts, k_starts, seed, offset, lse};
    more->queries = queries.expect_int(), more->keys = keys.expect_int();
    ctx->save_for_backward({q, k, v, at::Tensor(), result, rows});
    ctx->saved_data["more"] = c10::IValue::make_capsule(std::move(more));
    ctx->set_materialize_grads(false);
    return {result, rows};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& upstream) {
    require_first_order(kOp);
    const auto held = ctx->saved_data["more"].toCapsule();
    const auto& more = static_cast<const SavedDense&>(*held);
    const auto saved = ctx->get_saved_variables();
    auto gradients = upstream[1].defined() ? by_kernels(saved, more.dense, upstream)
                                           : by_library(saved, more, upstream[0]);
    gradients.resize(4);
    return gradients;
  }

 private:
  static variable_list by_library(const variable_list& saved, const SavedDense& more,
                                  const at::Tensor& dout) {
    if (!dout.defined()) return {};
    const c10::DeviceGuard guard(dout.device());
    const auto q = heads_first(saved[0]), k = heads_first(saved[1]), v = heads_first(saved[2]),
               out = saved[4].transpose(1, 2), up = heads_first(dout);
    const auto& [q_starts, k_starts, seed, offset, lse] = more.lists;
    const auto [dq, dk, dv] = more.dense.cudnn
                                  ? at::_scaled_dot_product_cudnn_attention_backward(
                                        up, q, k, v, out, lse, seed, offset, at::Tensor(), q_starts, k_starts,
                                        more.queries, more.keys, 0, more.dense.causal, more.dense.scale)
                                  : at::_scaled_dot_product_flash_attention_backward(
                                        up, q, k, v, out, lse, q_starts, k_starts, more.queries, more.keys, 0,
                                        more.dense.causal, seed, offset, more.dense.scale);
    return {dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2)};
  }

  // The library knows no gradient of the log-sum-exp.
  static variable_list by_kernels(const variable_list& saved, const Dense& dense,
                                  const variable_list& upstream) {
    const auto& kernel = *CudaKernels<AttentionCudaTable>::get();
    const CudaLaunch launch(saved[0]);
    const AttentionOptions options{.scale = dense.scale};
    const AttentionCuda p = Inputs(saved[0], saved[1], saved[2], {}, options).problem(options);
    const Saved more(MaskOnDevice({.causal = dense.causal}, p, saved[0], kernel, device_of(launch)), options);
    auto contiguous = saved;
    contiguous[4] = saved[4].contiguous();
    return run_backward(contiguous, more, {true, true, true, false}, upstream);
  }
};

}  // namespace

bool internal::cuda_attention_takes(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                    const at::Tensor& slopes) {
  const auto is_double = [](const at::Tensor& x) { return x.defined() && x.scalar_type() == at::kDouble; };
  constexpr int64_t kMostBatch = 65535;  // of a grid in y and z
  return choose_kernel(q) == Kernel::cuda && CudaKernels<AttentionCudaTable>::get() && !is_double(k) &&
         !is_double(v) && !is_double(slopes) && q.size(0) <= kMostBatch && q.size(2) > 0;
}

AttentionResult internal::cuda_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                         const Mask& mask, const AttentionOptions& options) {
  if (const auto dense = dense_case(q, k, v, mask, options)) {
    const auto result = DenseAttention::apply(q, k, v, *dense);
    return {result[0], result[1]};
  }
  const auto result = CudaAttention::apply(q, k, v, optional_of(options.slopes), mask, options);
  return {result[0], result[1]};
}

}  // namespace weft::ops
