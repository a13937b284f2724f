#include "ops/conv/long_conv.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <bit>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "base/error.h"
#include "ops/conv/fft_kernel.h"
#include "ops/parallel.h"
#include "ops/recurrence.h"
#include "ops/shape.h"
#include "ops/simd/dispatch.h"

namespace weft::ops {
namespace {

using kernels::FftOut;
using kernels::FftRows;
using kernels::LongConvGradients;
using kernels::LongConvProblem;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kOp = "long_conv";

// Complex numbers of a transform whose 2 size real ones hold `length` of them.
int64_t fft_size(int64_t length) {
  return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(std::max<int64_t>(4, length)))) / 2;
}

// Documents that share a length of transform, by their places among the B T tokens.
struct Group {
  int64_t size = 0, longest = 0;
  std::vector<int64_t> begin, tokens;
};

std::vector<Group> documents(int64_t batch, int64_t tokens, int64_t taps, const at::Tensor& starts) {
  std::map<int64_t, Group> groups;
  const auto add = [&](int64_t begin, int64_t count) {
    if (count == 0) return;
    auto& group = groups[fft_size(count + std::min(taps, count) - 1)];
    group.size = fft_size(count + std::min(taps, count) - 1);
    group.longest = std::max(group.longest, count);
    group.begin.push_back(begin);
    group.tokens.push_back(count);
  };
  const auto flags = starts.defined() ? starts.contiguous() : starts;
  for (int64_t b = 0; b < batch; ++b) {
    int64_t begin = 0;
    for (int64_t t = 1; flags.defined() && t < tokens; ++t)
      if (flags.const_data_ptr<bool>()[b * tokens + t]) add(b * tokens + begin, t - begin), begin = t;
    add(b * tokens + begin, tokens - begin);
  }
  std::vector<Group> list;
  for (auto& [size, group] : groups) list.push_back(std::move(group));
  return list;
}

// The rows of each document in a [B, T, E] tensor.
std::vector<FftRows> rows_in(const Group& group, const at::Tensor& x) {
  std::vector<FftRows> rows;
  for (size_t i = 0; i < group.begin.size(); ++i)
    rows.push_back({x.const_data_ptr<float>() + group.begin[i] * x.size(2), x.size(2), group.tokens[i]});
  return rows;
}

std::vector<FftOut> rows_out(const Group& group, const at::Tensor& x) {
  std::vector<FftOut> rows;
  for (size_t i = 0; i < group.begin.size(); ++i)
    rows.push_back(
        {x.mutable_data_ptr<float>() + group.begin[i] * x.size(2), x.size(2), 0, group.tokens[i], false});
  return rows;
}

// `taps` [L, E] contiguous fp32; the rows must outlive the problem.
LongConvProblem problem_of(int64_t size, const at::Tensor& taps, int64_t reach,
                           const std::vector<FftRows>& u) {
  LongConvProblem p;
  p.tables = &kernels::fft_tables(size);
  p.channels = taps.size(1);
  p.sequences = static_cast<int64_t>(u.size());
  p.kernel = {taps.const_data_ptr<float>(), p.channels, std::min(taps.size(0), reach)};
  p.u = u.data();
  return p;
}

// Calls body(scratch, begin, end) on parts of the tasks in parallel.
template <class Body>
void for_tasks(const LongConvProblem& p, const Body& body) {
  parallel_for(kernels::long_conv_tasks(p), 1, [&](int64_t begin, int64_t end) {
    const auto scratch =
        std::make_unique_for_overwrite<float[]>(static_cast<size_t>(kernels::long_conv_scratch(p)));
    body(scratch.get(), begin, end);
  });
}

at::Tensor run_forward(const at::Tensor& u, const at::Tensor& taps, const at::Tensor& starts, simd::Isa isa) {
  const auto y = at::empty(u.sizes(), u.options());
  for (const auto& group : documents(u.size(0), u.size(1), taps.size(0), starts)) {
    const auto in = rows_in(group, u);
    const auto out = rows_out(group, y);
    auto p = problem_of(group.size, taps, group.longest, in);
    p.y = out.data();
    for_tasks(p, [&](float* scratch, int64_t begin, int64_t end) {
      kernels::long_conv_forward(isa, p, scratch, begin, end);
    });
  }
  return y;
}

class LongConvFunction : public torch::autograd::Function<LongConvFunction> {
 public:
  // u [B, T, E], taps [L, E], both contiguous fp32.
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& u, const at::Tensor& taps,
                            const std::optional<at::Tensor>& starts, int64_t isa) {
    ctx->save_for_backward({u, taps, starts.value_or(at::Tensor())});
    ctx->saved_data["isa"] = isa;
    return run_forward(u, taps, starts.value_or(at::Tensor()), static_cast<simd::Isa>(isa));
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& upstream) {
    require_first_order(kOp);
    const auto saved = ctx->get_saved_variables();
    const auto &u = saved[0], &taps = saved[1], &starts = saved[2];
    const auto isa = static_cast<simd::Isa>(ctx->saved_data["isa"].toInt());
    const auto dy = upstream[0].contiguous();
    const auto du = ctx->needs_input_grad(0) ? at::empty(u.sizes(), u.options()) : at::Tensor();
    const auto dtaps = ctx->needs_input_grad(1) ? at::zeros(taps.sizes(), u.options()) : at::Tensor();
    for (const auto& group : documents(u.size(0), u.size(1), taps.size(0), starts)) {
      const auto in = rows_in(group, u), upstream_rows = rows_in(group, dy);
      const auto out = du.defined() ? rows_out(group, du) : std::vector<FftOut>();
      const auto p = problem_of(group.size, taps, group.longest, in);
      LongConvGradients g{
          .dy = upstream_rows.data(), .du = du.defined() ? out.data() : nullptr, .dkernel = {}};
      if (dtaps.defined())
        g.dkernel = {dtaps.mutable_data_ptr<float>(), p.channels, 0, p.kernel.tokens, true};
      for_tasks(p, [&](float* scratch, int64_t begin, int64_t end) {
        kernels::long_conv_backward(isa, p, g, scratch, begin, end);
      });
    }
    return {du, dtaps, {}, {}};
  }
};

void check(const at::Tensor& u, const at::Tensor& kernel, const at::Tensor& starts) {
  require_like(kOp, "u", u, u);
  require_shape(kOp, "u", u, {-1, -1, -1});
  require_like(kOp, "kernel", kernel, u);
  require_shape(kOp, "kernel", kernel, {u.size(2), -1});
  require(kernel.size(1) >= 1, "{}: kernel is {}, expected at least one tap", kOp, shape_text(kernel));
  check_starts(kOp, starts, u, u.size(0), u.size(1));
}

}  // namespace

at::Tensor long_conv(const at::Tensor& u, const at::Tensor& kernel, const at::Tensor& starts) {
  check(u, kernel, starts);
  const auto choice = choose_kernel(u);
  if (!is_cpu_kernel(choice) || kernel.scalar_type() == at::kDouble)
    return reference::long_conv(u, kernel, starts);
  const auto taps = kernel.to(at::kFloat).t().contiguous();
  const auto y = LongConvFunction::apply(u.to(at::kFloat).contiguous(), taps, optional_of(starts),
                                         static_cast<int64_t>(isa_of(choice)));
  return y.to(u.scalar_type());
}

// Spectra of the first `taps` taps for transforms of `size` complex numbers, as the kernels of `isa` lay them out.
struct LongConvStream::Spectra {
  std::mutex mutex;
  std::map<std::tuple<int64_t, int64_t, int>, at::Tensor> known;
};

LongConvStream::LongConvStream(const at::Tensor& kernel) : spectra_(std::make_unique<Spectra>()) {
  require_like("LongConvStream", "kernel", kernel, kernel);
  require_shape("LongConvStream", "kernel", kernel, {-1, -1});
  require(kernel.size(1) >= 1 && kernel.is_cpu(),
          "LongConvStream: kernel is {} on {}, expected at least one tap, on the CPU", shape_text(kernel),
          kernel.device().str());
  kernel_ = kernel.detach().to(at::kFloat).contiguous();
  period_ = std::max<int64_t>(2, static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(kernel.size(1)))));
}

LongConvStream::~LongConvStream() = default;

LongConvState LongConvStream::initial_state(int64_t batch) const {
  const auto zeros = [&] { return at::zeros({batch, period_, kernel_.size(0)}, kernel_.options()); };
  return {zeros(), zeros(), 0};
}

namespace {

// `count` rows of each sequence of [B, T, E] contiguous fp32, from row `first` on.
std::vector<FftRows> rows_at(const at::Tensor& x, int64_t first, int64_t count) {
  std::vector<FftRows> rows;
  for (int64_t b = 0; b < x.size(0); ++b)
    rows.push_back({x.const_data_ptr<float>() + (b * x.size(1) + first) * x.size(2), x.size(2), count});
  return rows;
}

// Adds outputs [from, from + count) of a convolution to rows `first` on.
std::vector<FftOut> add_at(const at::Tensor& x, int64_t first, int64_t from, int64_t count) {
  std::vector<FftOut> rows;
  for (int64_t b = 0; b < x.size(0); ++b)
    rows.push_back(
        {x.mutable_data_ptr<float>() + (b * x.size(1) + first) * x.size(2), x.size(2), from, count, true});
  return rows;
}

}  // namespace

at::Tensor LongConvStream::run(const at::Tensor& u, LongConvState& state) const {
  require_like("LongConvStream", "u", u, kernel_);
  const int64_t channels = kernel_.size(0);
  require_shape("LongConvStream", "u", u, {-1, -1, channels});
  for (const auto& [name, x] : {std::pair{"state.inputs", state.inputs}, {"state.pending", state.pending}}) {
    require_like("LongConvStream", name, x, kernel_);
    require_shape("LongConvStream", name, x, {u.size(0), period_, channels});
    require(x.is_contiguous() && x.scalar_type() == at::kFloat, "LongConvStream: {} must be contiguous fp32",
            name);
  }
  const auto isa = isa_of(choose_kernel(at::kCPU, at::kFloat));
  const auto taps = kernel_.t().contiguous();
  const auto convolve = [&](int64_t span, int64_t reach, const std::vector<FftRows>& in,
                            const std::vector<FftOut>& out) {
    auto p = problem_of(fft_size(2 * span), taps, reach, in);
    at::Tensor spectrum;
    {
      const std::lock_guard lock(spectra_->mutex);
      auto& known = spectra_->known[{p.tables->size, p.kernel.tokens, static_cast<int>(isa)}];
      if (!known.defined()) {
        known = at::empty({kernels::long_conv_tasks(p) * kernels::spectrum_floats(p)}, at::kFloat);
        p.spectrum = known.mutable_data_ptr<float>();
        for_tasks(p, [&](float* scratch, int64_t begin, int64_t end) {
          kernels::long_conv_spectrum(isa, p, scratch, begin, end);
        });
      }
      spectrum = known;
    }
    p.spectrum = spectrum.mutable_data_ptr<float>();
    p.y = out.data();
    for_tasks(p, [&](float* scratch, int64_t begin, int64_t end) {
      kernels::long_conv_forward(isa, p, scratch, begin, end);
    });
  };

  const auto x = u.detach().to(at::kFloat).contiguous();
  const auto y = at::empty(x.sizes(), x.options());
  for (int64_t done = 0; done < x.size(1);) {
    // The longest block of tokens that begins at a multiple of its length.
    int64_t span =
        std::min(period_, static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(x.size(1) - done))));
    while (state.tokens % span != 0) span /= 2;
    const int64_t slot = state.tokens % period_;
    const auto block = x.narrow(1, done, span), waiting = state.pending.narrow(1, slot, span);
    state.inputs.narrow(1, slot, span).copy_(block);
    y.narrow(1, done, span).copy_(waiting);
    waiting.zero_();
    convolve(span, span, rows_at(x, done, span), add_at(y, done, 0, span));
    done += span, state.tokens += span;
    // What the last `back` tokens do to the next `back`: lags of 1 to 2 back - 1.
    const int64_t back = std::min(period_, state.tokens & -state.tokens);
    convolve(back, 2 * back, rows_at(state.inputs, (state.tokens - back) % period_, back),
             add_at(state.pending, state.tokens % period_, back, back));
  }
  return y.to(u.scalar_type());
}

TORCH_LIBRARY_FRAGMENT(weft, m) {
  m.def("long_conv(Tensor u, Tensor kernel, Tensor? starts=None) -> Tensor",
        [](const at::Tensor& u, const at::Tensor& kernel, const std::optional<at::Tensor>& starts) {
          return long_conv(u, kernel, starts.value_or(at::Tensor()));
        });
}

}  // namespace weft::ops
