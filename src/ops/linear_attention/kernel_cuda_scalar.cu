// Linear attention without erase whose decay is none, constant or scalar, on Hopper: which sweeps make up its forward
// and its gradients, and the small kernels between them.
#include <algorithm>

#include "ops/cuda/hopper.cuh"
#include "ops/linear_attention/kernel_cuda_scalar.cuh"
#include "ops/linear_attention/scalar_gates.cuh"

namespace weft::kernels {
namespace scalar {
namespace {

constexpr int64_t kSharedBytes = 227 * 1024;
constexpr int kMinSegmentChunks = 8, kScanThreads = 128;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
int panels_of(int64_t width) { return width <= 64 ? 1 : width <= 128 ? 2 : 4; }

// Blocks have two warpgroups where two slices, or heads, share all of a and b, or two heads all of c.
Shape shape_of(int panels, int slices, int a_group, int b_group, int c_group, bool outputs) {
  if (outputs && panels == 1 && slices == 2 && a_group == 1 && b_group == 1 && c_group % 2 == 0)
    return {panels, 2, 2};
  if (panels == 4 && slices % 2 != 0) return {panels, 1, 1};
  const bool pairs = slices % 2 == 0 || (slices == 1 && a_group % 2 == 0 && b_group % 2 == 0);
  return {panels, pairs ? 2 : 1, 1};
}

int stages_of(Shape shape, bool outputs, bool extra) {
  const bool two_blocks = shape == Shape{} && outputs;
  const int64_t limit = two_blocks ? kSharedBytes / 2 - 1024 : kSharedBytes;
  int stages = 4;
  while (stages > 2 && Layout(shape, stages, outputs, extra).bytes > limit) --stages;
  return stages;
}

// How the sequence is cut, and what scratch and saved memory hold, in bytes from their beginnings.
struct Plan {
  int group, partials, key_slices, value_slices, key_panels, value_panels;
  int chunks, segments, segment_chunks, checkpoint_shift, checkpoint_chunks, checkpoints;
  int64_t states_bytes, passes_bytes, checkpoint_bytes, checkpoints_bytes, products_bytes;
  int64_t key_dots_bytes, value_dots_bytes, partial_bytes;

  explicit Plan(const CudaLinearAttention& p) {
    group = static_cast<int>(p.heads / p.key_heads);
    key_slices = static_cast<int>(divide_up(p.key_width, kSlice));
    value_slices = static_cast<int>(divide_up(p.value_width, kSlice));
    // Of dq and dk: blocks with two heads add these up.
    partials = group / shape_of(panels_of(p.value_width), key_slices, 1, 1, group, true).slices;
    key_panels = panels_of(p.key_width), value_panels = panels_of(p.value_width);
    chunks = static_cast<int>(divide_up(p.tokens, kChunk));
    // Errors of dlog_decay add up between checkpoints, and once more in the gradient of a constant.
    checkpoint_shift = p.log_decay.token == 0 ? 1 : kMaxCheckpointShift,
    checkpoint_chunks = 1 << checkpoint_shift;
    checkpoints = static_cast<int>(divide_up(chunks, checkpoint_chunks));
    // With few heads the sequence is cut, so that there is a block for most multiprocessors.
    const int64_t blocks = p.batch * p.heads * value_slices /
                           shape_of(key_panels, value_slices, group, group, 1, true).warpgroups;
    const int64_t wanted =
        std::clamp<int64_t>(p.multiprocessors / blocks, 1, std::max(1, chunks / kMinSegmentChunks));
    segment_chunks =
        static_cast<int>(divide_up(divide_up(chunks, wanted), checkpoint_chunks)) * checkpoint_chunks;
    segments = static_cast<int>(divide_up(chunks, segment_chunks));
    const auto bytes = [](int64_t n) { return divide_up(n, 256) * 256; };
    const int64_t heads = p.batch * p.heads;
    states_bytes = segments > 1 ? bytes(heads * segments * p.key_width * p.value_width * 4) : 0;
    passes_bytes = segments > 1 ? bytes(heads * segments * 4) : 0;
    checkpoint_bytes = int64_t{key_panels} * kChunk * 128;
    checkpoints_bytes = p.decay == Decay::none || !p.decay_gradient
                            ? 0
                            : heads * value_slices * checkpoints * checkpoint_bytes;
    products_bytes = bytes(heads * value_slices * checkpoints * 4 * 4);
    key_dots_bytes = bytes(heads * key_slices * p.tokens * 4);
    value_dots_bytes = bytes(heads * value_slices * p.tokens * 4);
    partial_bytes = partials > 1 ? bytes(p.batch * p.tokens * p.key_heads * partials * p.key_width * 2) : 0;
  }
};

CudaRows contiguous(const CudaLinearAttention& p, const void* data, int64_t heads, int64_t width) {
  return {data, p.v.type, p.tokens * heads * width, heads * width, width};
}

Sweep sweep_of(const CudaLinearAttention& p, const Plan& plan) {
  Sweep s;
  s.type = p.v.type, s.scale = p.scale, s.multiprocessors = p.multiprocessors;
  s.batch = static_cast<int>(p.batch), s.heads = static_cast<int>(p.heads),
  s.tokens = static_cast<int>(p.tokens);
  s.chunks = plan.chunks, s.segments = plan.segments, s.segment_chunks = plan.segment_chunks;
  s.checkpoint_shift = plan.checkpoint_shift, s.num_checkpoints = plan.checkpoints;
  if (p.decay != Decay::none) s.log_decay = p.log_decay;
  s.write = p.write, s.starts = p.starts;
  return s;
}

// A tensor that a sweep reads or writes.
struct Operand {
  CudaRows rows;
  int64_t heads, width;
};

constexpr Operand kNone = {{}, 1, 1};

// The role of a sweep of a, b and c; a, out and extra may be kNone. All roles of a sweep have as many panels.
CudaStatus make_role(const CudaLinearAttention& p, Sweep& s, const Operand& a, const Operand& b,
                     const Operand& c, const Operand& out, const Operand& extra, Role& role) {
  const auto map = [&](CUtensorMap& to, const Operand& x) -> CudaStatus {
    return x.rows.data ? make_tensor_map(&to, x.rows, x.width, x.heads, p.tokens, p.batch, kChunk) : nullptr;
  };
  for (const auto& [to, x] : {std::pair(&role.a, &a), std::pair(&role.b, &b), std::pair(&role.c, &c),
                              std::pair(&role.out, &out), std::pair(&role.extra, &extra)})
    if (const auto error = map(*to, *x)) return error;
  const auto group = [&](const Operand& x) { return static_cast<int>(p.heads / x.heads); };
  role.a_group = group(a), role.b_group = group(b), role.c_group = group(c), role.extra_group = group(extra);
  role.depth = static_cast<int>(b.width), role.width = static_cast<int>(c.width);
  role.slices = static_cast<int>(divide_up(c.width, kSlice));
  role.store = out.rows.data, role.out_rows = out.rows, role.extra_rows = extra.rows;
  s.shape = shape_of(panels_of(b.width), role.slices, s.outputs ? role.a_group : role.b_group, role.b_group,
                     role.c_group, s.outputs);
  role.groups = static_cast<int>(p.heads * role.slices / (s.shape.warpgroups * s.shape.slices));
  return nullptr;
}

CudaStatus launch(Sweep& s, cudaStream_t stream) {
  for (int r = 0; r < s.num_roles; ++r) {
    s.extra = s.extra || s.roles[r].has_dots();
    s.blocks += s.roles[r].groups * s.batch * s.segments;
  }
  s.stages = stages_of(s.shape, s.outputs, s.extra);
  return launch_sweep(s, stream);
}

CudaStatus sum_heads(const CudaLinearAttention& p, const Plan& plan, const void* from, void* to,
                     cudaStream_t stream) {
  const int64_t count = p.batch * p.tokens * p.key_heads * p.key_width;
  const auto blocks = static_cast<unsigned>(divide_up(count / 8, kScanThreads));
  const auto run = [&]<class T>(T) {
    sum_groups<T><<<blocks, kScanThreads, 0, stream>>>(static_cast<const T*>(from), static_cast<T*>(to),
                                                       count, plan.partials, p.key_width);
  };
  if (p.v.type == CudaType::bf16)
    run(bf16{});
  else
    run(fp16{});
  return last_status();
}

bool aligned(const CudaRows& x, int64_t heads, int64_t tokens, int64_t batch) {
  const auto good = [](int64_t extent, int64_t stride) {
    return extent == 1 || (stride > 0 && stride % 8 == 0);
  };
  return x.data && reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && good(heads, x.head) &&
         good(tokens, x.token) && good(batch, x.batch);
}

bool takes(const CudaLinearAttention& p) {
  const auto width = [](int64_t n) { return n >= 16 && n <= 256 && n % 8 == 0; };
  return p.capability == 90 && p.decay != Decay::vector && !p.beta.data && !p.erase_read.data && !p.bonus &&
         p.v.type != CudaType::fp32 && p.batch > 0 && p.tokens > 0 && p.tokens < (int64_t{1} << 30) &&
         width(p.key_width) && width(p.value_width) && p.batch * p.heads < 65536 &&
         aligned(p.q, p.key_heads, p.tokens, p.batch) && aligned(p.k, p.key_heads, p.tokens, p.batch) &&
         aligned(p.v, p.heads, p.tokens, p.batch);
}

int64_t saved_bytes(const CudaLinearAttention& p) {
  const Plan plan(p);
  return plan.checkpoints_bytes + plan.states_bytes;
}
int64_t forward_scratch(const CudaLinearAttention& p) {
  const Plan plan(p);
  return plan.passes_bytes + plan.states_bytes;
}
int64_t backward_scratch(const CudaLinearAttention& p) {
  const Plan plan(p);
  return plan.states_bytes + plan.passes_bytes + plan.products_bytes + plan.key_dots_bytes +
         2 * plan.value_dots_bytes + 2 * plan.partial_bytes;
}

// Takes memory piece by piece.
struct Carver {
  char* at;
  void* take(int64_t bytes) {
    char* const piece = at;
    at += bytes;
    return piece;
  }
  float* floats(int64_t bytes) { return static_cast<float*>(take(bytes)); }
};

// The states that segments begin with, from b and c.
CudaStatus segment_states(const CudaLinearAttention& p, const Plan& plan, const Operand& b, const Operand& c,
                          bool reverse, float* states, float* passes, const float* initial,
                          cudaStream_t stream) {
  Sweep s = sweep_of(p, plan);
  s.outputs = false, s.passes = passes, s.num_roles = 1;
  s.segments = plan.segments - 1, s.first_segment = reverse ? 1 : 0;
  Role& role = s.roles[0];
  if (const auto error = make_role(p, s, kNone, b, c, kNone, kNone, role)) return error;
  role.reverse = reverse;
  role.final = {states, plan.segments, role.width, 1};
  if (const auto error = launch(s, stream)) return error;
  const int64_t size = p.key_width * p.value_width;
  const dim3 grid(static_cast<unsigned>(divide_up(size, 4 * kScanThreads)),
                  static_cast<unsigned>(p.batch * p.heads));
  scan_states<<<grid, kScanThreads, 0, stream>>>(states, passes, initial, plan.segments, size, reverse);
  return last_status();
}

CudaStatus forward(const CudaLinearAttention& p, void* saved, void* scratch, void* stream) {
  const Plan plan(p);
  const auto on = static_cast<cudaStream_t>(stream);
  const bool cut = plan.segments > 1;
  const Operand q{p.q, p.key_heads, p.key_width}, k{p.k, p.key_heads, p.key_width},
      v{p.v, p.heads, p.value_width};
  const Operand y{contiguous(p, p.y, p.heads, p.value_width), p.heads, p.value_width};
  Carver own{static_cast<char*>(scratch)}, kept{static_cast<char*>(saved)};
  float* const passes = own.floats(plan.passes_bytes);
  void* const checkpoints = saved ? kept.take(plan.checkpoints_bytes) : nullptr;
  float* const states = (saved ? kept : own).floats(plan.states_bytes);
  if (cut)
    if (const auto error = segment_states(p, plan, k, v, false, states, passes, p.initial_state, on))
      return error;
  Sweep s = sweep_of(p, plan);
  s.num_roles = 1;
  Role& role = s.roles[0];
  if (const auto error = make_role(p, s, q, k, v, y, kNone, role)) return error;
  role.initial = {cut ? states : const_cast<float*>(p.initial_state), plan.segments, role.width, 1};
  role.final = {p.state, 1, role.width, 1};
  if (plan.checkpoints_bytes) role.checkpoints = checkpoints;
  return launch(s, on);
}

CudaStatus backward(const CudaLinearAttention& p, const CudaLinearAttentionGradients& g, const void* saved,
                    void* scratch, void* stream) {
  const Plan plan(p);
  const auto on = static_cast<cudaStream_t>(stream);
  const bool cut = plan.segments > 1, shared = plan.partials > 1;
  Carver own{static_cast<char*>(scratch)}, kept{static_cast<char*>(const_cast<void*>(saved))};
  void* const checkpoints = kept.take(plan.checkpoints_bytes);
  float* const states = kept.floats(plan.states_bytes);
  float* const dstates = own.floats(plan.states_bytes);
  float* const passes = own.floats(plan.passes_bytes);
  float* const products = own.floats(plan.products_bytes);
  float* const key_dots = own.floats(plan.key_dots_bytes);
  float* const value_dots = own.floats(plan.value_dots_bytes);
  float* const dwrite_dots = own.floats(plan.value_dots_bytes);
  void* const dq = shared && g.dq ? own.take(plan.partial_bytes) : g.dq;
  void* const dk = shared && g.dk ? own.take(plan.partial_bytes) : g.dk;

  const Operand q{p.q, p.key_heads, p.key_width}, k{p.k, p.key_heads, p.key_width},
      v{p.v, p.heads, p.value_width};
  const auto of_keys = [&](void* x) {
    const int64_t heads = p.key_heads * plan.partials;
    return Operand{contiguous(p, x, heads, p.key_width), heads, p.key_width};
  };
  const auto of_values = [&](const void* x) {
    return Operand{contiguous(p, x, p.heads, p.value_width), p.heads, p.value_width};
  };
  const Operand dy = of_values(g.dy);
  if (cut)
    if (const auto error = segment_states(p, plan, q, dy, true, dstates, passes, g.dstate, on)) return error;
  const auto value_width = static_cast<int>(p.value_width);
  float* const initial = cut ? states : const_cast<float*>(p.initial_state);
  float* const dfinal = cut ? dstates : const_cast<float*>(g.dstate);

  Role of_q, of_k, of_v;
  Sweep by_values = sweep_of(p, plan);  // dk and dq have states of depth V, dv of depth K
  if (const auto error = make_role(p, by_values, v, dy, q, of_keys(dk), kNone, of_k)) return error;
  of_k.reverse = true;
  of_k.initial = {dfinal, plan.segments, 1, value_width};
  if (const auto error = make_role(p, by_values, dy, v, k, of_keys(dq), q, of_q)) return error;
  of_q.initial = {initial, plan.segments, 1, value_width};
  if (g.dlog_decay) of_q.off_diagonal = key_dots;
  Sweep by_keys = sweep_of(p, plan);
  if (const auto error = make_role(p, by_keys, k, q, dy, of_values(g.dv), v, of_v)) return error;
  of_v.reverse = true;
  of_v.initial = {dfinal, plan.segments, value_width, 1};
  of_v.final = {g.dinitial, 1, value_width, 1};
  if (g.dwrite) of_v.dots = dwrite_dots;
  if (g.dlog_decay) of_v.off_diagonal = value_dots, of_v.checkpoints = checkpoints, of_v.products = products;

  const bool wants_q = g.dq || g.dlog_decay, wants_k = g.dk;
  const bool wants_v = g.dv || g.dlog_decay || g.dwrite || g.dinitial;
  // One launch where the roles agree; dk and dv, which read the same, side by side.
  const bool together = by_keys.shape == by_values.shape;
  Sweep& first = together ? by_values : by_keys;
  if (wants_k) by_values.roles[by_values.num_roles++] = of_k;
  if (wants_v) first.roles[first.num_roles++] = of_v;
  if (wants_q) by_values.roles[by_values.num_roles++] = of_q;
  first.interleaved = together && wants_k && wants_v && of_k.groups == of_v.groups;
  for (Sweep* s : {&by_values, &by_keys})
    if (s->num_roles > 0)
      if (const auto error = launch(*s, on)) return error;

  for (const auto& [from, to] : {std::pair(dq, g.dq), std::pair(dk, g.dk)})
    if (shared && to)
      if (const auto error = sum_heads(p, plan, from, to, on)) return error;
  if (!g.dlog_decay && !g.dwrite) return nullptr;
  const GateGradients gates{key_dots,
                            value_dots,
                            dwrite_dots,
                            products,
                            plan.key_slices,
                            plan.value_slices,
                            by_keys.tokens,
                            by_keys.heads,
                            plan.checkpoints,
                            by_keys.log_decay,
                            p.write,
                            p.starts,
                            p.initial_state != nullptr,
                            g.dlog_decay,
                            g.dwrite};
  const dim3 grid(static_cast<unsigned>(plan.checkpoints),
                  static_cast<unsigned>(p.batch * divide_up(p.heads, kGateHeads)));
  gate_gradients<<<grid, plan.checkpoint_chunks * kChunk, 0, on>>>(gates);
  return last_status();
}

}  // namespace
}  // namespace scalar

const CudaLinearAttentionForm kCudaScalarForm = {"scalar",
                                                 scalar::takes,
                                                 scalar::saved_bytes,
                                                 scalar::forward_scratch,
                                                 scalar::backward_scratch,
                                                 scalar::forward,
                                                 scalar::backward,
                                                 true};

}  // namespace weft::kernels
