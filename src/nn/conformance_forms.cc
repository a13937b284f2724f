#include "nn/conformance_forms.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>

#include "base/error.h"

namespace weft::conformance {
namespace {

// One token, around the chunk sizes of the kernels, odd; one sequence and several; with and without a past.
struct Shape {
  int64_t batch, tokens, prefix;
};
const std::vector<Shape> kShapes = {{1, 1, 0}, {3, 2, 1}, {1, 7, 0}, {3, 17, 5}, {2, 65, 2}};
constexpr int64_t kProbe = 4;  // tokens run from two states to see whether the states are the same

std::string text(const Shape& s) { return fmt::format("B {} T {} after {}", s.batch, s.tokens, s.prefix); }

class Random {
 public:
  explicit Random(uint64_t seed) : generator_(at::make_generator<at::CPUGeneratorImpl>(seed)) {}
  at::Tensor normal(at::IntArrayRef sizes) {
    return at::randn(sizes, generator_, at::TensorOptions().dtype(at::kDouble));
  }
  int64_t below(int64_t limit) {
    return at::randint(limit, {1}, generator_, at::TensorOptions().dtype(at::kLong)).item<int64_t>();
  }

 private:
  at::Generator generator_;
};

// A mixer with inputs of its type and device; results come back as fp64 on the CPU.
struct Runner {
  SequenceMixer& mixer;
  at::ScalarType dtype;
  at::Device device;

  at::Tensor in(const at::Tensor& x) const { return x.to(device, dtype); }
  static at::Tensor out(const at::Tensor& y) { return y.to(at::kCPU, at::kDouble); }
  State fresh(int64_t batch) const {
    return mixer.initial_state(batch, at::TensorOptions().dtype(dtype).device(device));
  }
  Context context(const at::Tensor& position, int64_t tokens, const at::Tensor& starts = {}) const {
    return Context::at_positions(position.to(device), tokens, starts.defined() ? starts.to(device) : starts);
  }
  at::Tensor run(const at::Tensor& x, State& state, const at::Tensor& position,
                 const at::Tensor& starts = {}) const {
    return out(mixer.run(in(x), state, context(position, x.size(1), starts)));
  }
};

Runner reference_of(const Subject& s) { return {s.reference, at::kDouble, at::kCPU}; }
Runner mixer_of(const Subject& s) { return {s.mixer, s.dtype, s.device}; }

at::Tensor at_position(int64_t batch, int64_t position) { return at::full({batch}, position, at::kLong); }

// Records the worst difference over several comparisons.
class Worst {
 public:
  explicit Worst(CheckResult& result) : result_(result) {}
  // `floor`: differences are relative to this where the expected values are smaller.
  void compare(const at::Tensor& actual, const at::Tensor& expected, const std::string& what,
               double floor = 1e-3) {
    require(actual.sizes() == expected.sizes(), "{}: shape differs", what);
    if (expected.numel() == 0) return;
    require(at::isfinite(actual).all().item<bool>(), "{}: values that are not finite", what);
    const double scale = std::max(expected.abs().max().item<double>(), floor);
    add((actual - expected).abs().max().item<double>() / scale, what);
  }
  void add(double error, const std::string& what) {
    if (error < result_.error) return;
    result_.error = error;
    result_.detail = what;
  }

 private:
  CheckResult& result_;
};

// Random inputs of one shape, and the two mixers' states after the prefix.
struct Trial {
  Shape shape;
  at::Tensor x, probe;
  Runner reference, mixer;
  State reference_state, state;

  at::Tensor position(int64_t after = 0) const { return at_position(shape.batch, shape.prefix + after); }
  at::Tensor expected() const {
    State copy = reference_state;
    return reference.run(x, copy, position());
  }
  // What the reference gives for the probe after the first n tokens of x.
  at::Tensor expected_probe(int64_t n) const {
    State copy = reference_state;
    reference.run(x.slice(1, 0, n), copy, position());
    return reference.run(probe, copy, position(n));
  }
};

Trial make_trial(const Subject& s, const Shape& shape, Random& random) {
  const auto tokens =
      [&](int64_t count) {  // rounded to the type under test, so that only its arithmetic differs
        return random.normal({shape.batch, count, s.width}).to(s.dtype).to(at::kDouble);
      };
  Trial trial{shape, tokens(shape.tokens), tokens(kProbe), reference_of(s), mixer_of(s), {}, {}};
  const auto prefix = tokens(shape.prefix);
  trial.reference_state = trial.reference.fresh(shape.batch);
  trial.state = trial.mixer.fresh(shape.batch);
  if (shape.prefix > 0) {
    trial.reference.run(prefix, trial.reference_state, at_position(shape.batch, 0));
    trial.mixer.run(prefix, trial.state, at_position(shape.batch, 0));
  }
  return trial;
}

template <class F>
void for_each_trial(const Subject& s, CheckResult& result, F&& body) {
  const at::NoGradGuard no_grad;
  Random random(s.seed + 17);
  Worst worst(result);
  for (const auto& shape : kShapes) {
    if (!s.mixer.causal() && shape.prefix > 0) continue;
    Trial trial = make_trial(s, shape, random);
    body(trial, worst, random);
  }
}

void whole(Subject& s, CheckResult& result) {
  for_each_trial(s, result, [](Trial& t, Worst& worst, Random&) {
    const auto expected = t.expected();
    require(expected.abs().max().item<double>() > 1e-6, "the output is zero everywhere; nothing is tested");
    worst.compare(t.mixer.run(t.x, t.state, t.position()), expected, text(t.shape));
  });
}

void step(Subject& s, CheckResult& result) {
  for_each_trial(s, result, [](Trial& t, Worst& worst, Random&) {
    std::vector<at::Tensor> outputs;
    for (int64_t i = 0; i < t.shape.tokens; ++i) {
      const auto context = t.mixer.context(t.position(i), 1);
      outputs.push_back(
          Runner::out(t.mixer.mixer.step(t.mixer.in(t.x.slice(1, i, i + 1)), t.state, context)));
    }
    worst.compare(at::cat(outputs, 1), t.expected(), text(t.shape));
    worst.compare(t.mixer.run(t.probe, t.state, t.position(t.shape.tokens)), t.expected_probe(t.shape.tokens),
                  text(t.shape) + ", state");
  });
}

void chunked(Subject& s, CheckResult& result) {
  for_each_trial(s, result, [](Trial& t, Worst& worst, Random& random) {
    std::vector<at::Tensor> outputs;
    for (int64_t begin = 0; begin < t.shape.tokens;) {
      const int64_t end =
          std::min(t.shape.tokens, begin + random.below(t.shape.tokens / 2 + 2));  // may be empty
      outputs.push_back(t.mixer.run(t.x.slice(1, begin, end), t.state, t.position(begin)));
      begin = end;
    }
    worst.compare(at::cat(outputs, 1), t.expected(), text(t.shape));
    worst.compare(t.mixer.run(t.probe, t.state, t.position(t.shape.tokens)), t.expected_probe(t.shape.tokens),
                  text(t.shape) + ", state");
  });
}

// Documents of random length in each row, cut at different places; the first continues the state.
struct Documents {
  at::Tensor starts;                       // [B, T] bool
  std::vector<std::vector<int64_t>> cuts;  // of each row: 0, starts..., T
  at::Tensor next_position;                // [B]
};

Documents make_documents(const Trial& t, Random& random) {
  Documents d{at::zeros({t.shape.batch, t.shape.tokens}, at::kBool), {}, t.position(t.shape.tokens)};
  for (int64_t row = 0; row < t.shape.batch; ++row) {
    std::vector<int64_t> cuts{0};
    for (int64_t i = row == 0 ? 1 : 0; i < t.shape.tokens; ++i) {
      if (random.below(6) != 0) continue;
      d.starts.index_put_({at::tensor(row), at::tensor(i)}, at::ones({}, at::kBool));
      cuts.push_back(i);
      d.next_position[row] = t.shape.tokens - i;
    }
    cuts.push_back(t.shape.tokens);
    d.cuts.push_back(cuts);
  }
  return d;
}

void segmented(Subject& s, CheckResult& result) {
  for_each_trial(s, result, [](Trial& t, Worst& worst, Random& random) {
    const auto documents = make_documents(t, random);
    const auto y = t.mixer.run(t.x, t.state, t.position(), documents.starts);
    const bool stateful = t.mixer.mixer.causal();
    const auto probe = stateful ? t.mixer.run(t.probe, t.state, documents.next_position) : at::Tensor();
    for (int64_t row = 0; row < t.shape.batch; ++row) {
      const auto index = at::tensor({row});
      const auto& cuts = documents.cuts[static_cast<size_t>(row)];
      State state = t.reference_state.select(index);
      std::vector<at::Tensor> outputs;
      for (size_t i = 0; i + 1 < cuts.size(); ++i) {
        // An empty document before a start at 0 or between two starts leaves nothing.
        if (i > 0) state = t.reference.fresh(1);
        const auto x = t.x.index_select(0, index).slice(1, cuts[i], cuts[i + 1]);
        outputs.push_back(t.reference.run(x, state, at_position(1, i == 0 ? t.shape.prefix : 0)));
      }
      const auto name = fmt::format("{} row {}", text(t.shape), row);
      worst.compare(y.index_select(0, index), at::cat(outputs, 1), name);
      if (stateful)
        worst.compare(probe.index_select(0, index),
                      t.reference.run(t.probe.index_select(0, index), state,
                                      documents.next_position.index_select(0, index)),
                      name + ", state");
    }
  });
}

void reversed(Subject& s, CheckResult& result) {
  for_each_trial(s, result, [](Trial& t, Worst& worst, Random& random) {
    if (t.shape.prefix > 0) t.shape.prefix = 0;
    const auto documents = make_documents(t, random);
    const auto context = t.mixer.context(t.position(), t.shape.tokens, documents.starts);
    const auto y = Runner::out(t.mixer.mixer.run_reversed(t.mixer.in(t.x), context));
    for (int64_t row = 0; row < t.shape.batch; ++row) {
      const auto& cuts = documents.cuts[static_cast<size_t>(row)];
      std::vector<at::Tensor> outputs;
      for (size_t i = 0; i + 1 < cuts.size(); ++i) {
        State state = t.reference.fresh(1);
        const auto x = t.x.slice(0, row, row + 1).slice(1, cuts[i], cuts[i + 1]).flip(1);
        outputs.push_back(t.reference.run(x, state, at_position(1, 0)).flip(1));
      }
      worst.compare(y.slice(0, row, row + 1), at::cat(outputs, 1),
                    fmt::format("{} row {}", text(t.shape), row));
    }
  });
}

void commit(Subject& s, CheckResult& result) {
  for_each_trial(s, result, [](Trial& t, Worst& worst, Random& random) {
    for (const bool equal : {true, false}) {
      State state = t.state;
      Draft draft;
      const auto context = t.mixer.context(t.position(), t.shape.tokens);
      const auto y = t.mixer.mixer.tentative(t.mixer.in(t.x), state, context, draft);
      worst.compare(Runner::out(y), t.expected(), text(t.shape) + ", draft");
      auto n = at::zeros({t.shape.batch}, at::kLong);
      for (int64_t row = 0; row < t.shape.batch; ++row)
        n[row].fill_(equal && row > 0 ? n[0].item<int64_t>() : random.below(t.shape.tokens + 1));
      t.mixer.mixer.commit(n, state, draft);
      const auto probe = t.mixer.run(t.probe, state, t.position() + n);
      for (int64_t row = 0; row < t.shape.batch; ++row) {
        const auto count = n[row].item<int64_t>();
        worst.compare(probe.slice(0, row, row + 1), t.expected_probe(count).slice(0, row, row + 1),
                      fmt::format("{}, commit({})", text(t.shape), count));
      }
    }
  });
}

// A copy and two selected rows go on with tokens of their own; none disturbs another.
void fork(Subject& s, CheckResult& result) {
  for_each_trial(s, result, [](Trial& t, Worst& worst, Random&) {
    const auto rows = at::zeros({2}, at::kLong);
    const auto name = text(t.shape);
    State copy = t.state;
    State pair = t.state.select(rows.to(t.mixer.device));
    State reference_pair = t.reference_state.select(rows);
    const auto x = at::stack({t.x[0], -t.x[0]});
    const auto position = at_position(2, t.shape.prefix);
    worst.compare(t.mixer.run(x, pair, position), t.reference.run(x, reference_pair, position),
                  name + ", two forks");
    worst.compare(
        t.mixer.run(-t.x, copy, t.position()),
        [&] {
          State reference_copy = t.reference_state;
          return t.reference.run(-t.x, reference_copy, t.position());
        }(),
        name + ", copy");
    for (int64_t i = 0; i < t.shape.tokens; ++i) {  // steps may write in place
      State scratch = t.state;
      t.mixer.mixer.step(t.mixer.in(t.x.slice(1, i, i + 1)), scratch, t.mixer.context(t.position(), 1));
      if (i > 2) break;
    }
    worst.compare(t.mixer.run(t.x, t.state, t.position()), t.expected(), name + ", original");
  });
}

void save_load(Subject& s, CheckResult& result) {
  for_each_trial(s, result, [](Trial& t, Worst& worst, Random&) {
    t.mixer.run(t.x, t.state, t.position());
    std::map<std::string, at::Tensor> stored;
    for (const auto& [name, tensor] : t.state.tensors()) stored[name] = tensor.to(at::kCPU).clone();
    State loaded = t.mixer.fresh(t.shape.batch).with(stored);
    worst.compare(t.mixer.run(t.probe, loaded, t.position(t.shape.tokens)), t.expected_probe(t.shape.tokens),
                  text(t.shape));
  });
}

// Three spans, summarised on their own, folded in order: the states between them and the outputs from those
// states.
void summary(Subject& s, CheckResult& result) {
  for_each_trial(s, result, [&](Trial& t, Worst& worst, Random&) {
    if (result.verdict == CheckResult::Verdict::not_applicable) return;
    std::vector<at::Tensor> outputs;
    State state = t.state;
    for (int64_t rank = 0; rank < 3; ++rank) {
      const int64_t begin = rank * t.shape.tokens / 3, end = (rank + 1) * t.shape.tokens / 3;
      const auto x = t.x.slice(1, begin, end);
      const auto context = t.mixer.context(t.position(begin), end - begin);
      try {
        const Summary span = t.mixer.mixer.summary(t.mixer.in(x), state, context);
        State before = state;
        outputs.push_back(t.mixer.run(x, before, t.position(begin)));
        state = span.apply(state);
      } catch (const Unsupported& reason) {
        result.verdict = CheckResult::Verdict::not_applicable;
        result.detail = reason.what();
        return;
      }
    }
    worst.compare(at::cat(outputs, 1), t.expected(), text(t.shape) + ", outputs");
    worst.compare(t.mixer.run(t.probe, state, t.position(t.shape.tokens)), t.expected_probe(t.shape.tokens),
                  text(t.shape) + ", state");
  });
}

// Changing token t moves no output before t; a mixer that says it looks ahead must do so.
void causality(Subject& s, CheckResult& result) {
  const bool causal = s.mixer.causal();
  for_each_trial(s, result, [&](Trial& t, Worst& worst, Random& random) {
    if (t.shape.tokens < 2) return;
    const int64_t at = 1 + random.below(t.shape.tokens - 1);
    auto changed = t.x.clone();
    changed.select(1, at).neg_().add_(1);
    State a = t.state, b = t.state;
    const auto y = t.mixer.run(t.x, a, t.position()), z = t.mixer.run(changed, b, t.position());
    const double before = (y - z).slice(1, 0, at).abs().max().item<double>();
    const double after = (y - z).slice(1, at).abs().max().item<double>();
    require(after > 0, "{}: changing token {} changes nothing", text(t.shape), at);
    if (causal)
      worst.add(before / std::max(y.abs().max().item<double>(), 1e-3),
                fmt::format("{}, token {}", text(t.shape), at));
    else
      require(before > 0, "{}: the mixer says it looks ahead, but it does not", text(t.shape));
  });
}

void state_bytes(Subject& s, CheckResult& result) {
  const at::NoGradGuard no_grad;
  Random random(s.seed + 23);
  const auto mixer = mixer_of(s);
  for (const int64_t tokens : {0, 1, 7, 40}) {
    State state = mixer.fresh(1);
    mixer.run(random.normal({1, tokens, s.width}), state, at_position(1, 0));
    const int64_t said = s.mixer.state_bytes(tokens, s.dtype);
    require(state.bytes() == said, "after {} tokens the state has {} bytes, but state_bytes says {}", tokens,
            state.bytes(), said);
  }
  result.detail = fmt::format("{} bytes after 40 tokens", s.mixer.state_bytes(40, s.dtype));
}

// The gradient of a random projection of outputs and final state, along random directions, against central
// differences.
struct Projection {
  Subject& s;
  at::Tensor y_weights;
  std::map<std::string, at::Tensor> state_weights;

  at::Tensor operator()(const at::Tensor& x, const State& before, const std::vector<int64_t>& cuts) {
    State state = before;
    std::vector<at::Tensor> outputs;
    const int64_t batch = x.size(0);
    for (size_t i = 0; i + 1 < cuts.size(); ++i)
      outputs.push_back(
          s.mixer.run(x.slice(1, cuts[i], cuts[i + 1]), state,
                      Context::at_positions(at_position(batch, 3 + cuts[i]), cuts[i + 1] - cuts[i])));
    auto sum = (at::cat(outputs, 1) * y_weights).sum();
    if (!s.mixer.causal()) return sum;
    for (const auto& [name, tensor] : state.tensors())
      if (tensor.is_floating_point()) {
        auto& w = state_weights[name];
        if (!w.defined()) w = at::cos(at::arange(tensor.numel(), tensor.options()) + 1).view(tensor.sizes());
        sum = sum + (tensor * w).sum();
      }
    return sum;
  }
};

void gradients(Subject& s, CheckResult& result) {
  Random random(s.seed + 31);
  Worst worst(result);
  const int64_t batch = 2, tokens = 6;
  s.mixer.requires_grad(true);
  const auto x = random.normal({batch, tokens, s.width}).requires_grad_(true);
  State before = mixer_of(s).fresh(batch);
  {
    const at::NoGradGuard no_grad;
    if (s.mixer.causal()) mixer_of(s).run(random.normal({batch, 3, s.width}), before, at_position(batch, 0));
  }
  std::vector<std::pair<std::string, at::Tensor>> leaves{{"x", x}};
  auto tensors = before.tensors();
  for (auto& [name, tensor] : tensors)
    if (tensor.is_floating_point()) {
      tensor = tensor.detach().clone().requires_grad_(true);
      leaves.emplace_back("state " + name, tensor);
    }
  before = before.with(tensors);
  for (const auto& [name, parameter] : s.mixer.parameters()) leaves.emplace_back(name, parameter->value);

  Projection projection{s, random.normal({batch, tokens, s.width}), {}};
  const auto differentiate = [&](const std::vector<int64_t>& cuts) {
    std::vector<at::Tensor> inputs;
    for (const auto& [name, leaf] : leaves) inputs.push_back(leaf);
    return torch::autograd::grad({projection(x, before, cuts)}, inputs, {}, std::nullopt, false,
                                 /*allow_unused=*/true);
  };
  const auto whole_gradients = differentiate({0, tokens});
  if (s.mixer.causal()) {
    const auto chunked_gradients = differentiate({0, 1, 4, tokens});
    for (size_t i = 0; i < leaves.size(); ++i)
      if (whole_gradients[i].defined() && chunked_gradients[i].defined())
        worst.compare(chunked_gradients[i], whole_gradients[i], leaves[i].first + ", chunked");
  }
  const at::NoGradGuard no_grad;
  for (size_t i = 0; i < leaves.size(); ++i) {
    const auto& leaf = leaves[i].second;
    const auto direction = random.normal(leaf.sizes());
    constexpr double kStep = 5e-6;
    const auto value_at = [&](double step) {
      leaf.add_(direction, step);
      const double value = projection(x, before, {0, tokens}).item<double>();
      leaf.sub_(direction, step);
      return value;
    };
    // Five points: where the function bends sharply, as behind a small normaliser, three would not do.
    const double numeric =
        (8 * (value_at(kStep) - value_at(-kStep)) - (value_at(2 * kStep) - value_at(-2 * kStep))) /
        (12 * kStep);
    const double exact =
        whole_gradients[i].defined() ? (whole_gradients[i] * direction).sum().item<double>() : 0;
    // Differences carry a rounding error of about 1e-10 of the projection's size; brought to the suite's fp64
    // bound.
    worst.add(std::abs(numeric - exact) / std::max(std::abs(exact), 1.0) * (result.bound / 1e-5),
              leaves[i].first);
  }
  s.mixer.requires_grad(false);
}

// Gradients of the kernels against the fp64 reference, with autograd through it.
void kernel_gradients(Subject& s, CheckResult& result) {
  Worst worst(result);
  Random random(s.seed + 37);
  s.mixer.requires_grad(true);
  s.reference.requires_grad(true);
  for (const auto& shape : {Shape{1, 1, 0}, Shape{2, 40, 0}}) {
    const auto x = random.normal({shape.batch, shape.tokens, s.width});
    const auto weights = random.normal(x.sizes());
    const auto differentiate = [&](const Runner& runner) {
      const auto leaf = runner.in(x).detach().requires_grad_(true);
      State state = runner.fresh(shape.batch);
      const auto y = runner.mixer.run(leaf, state, runner.context(at_position(shape.batch, 0), shape.tokens));
      std::vector<at::Tensor> inputs{leaf};
      for (const auto& [name, parameter] : runner.mixer.parameters()) inputs.push_back(parameter->value);
      return torch::autograd::grad({(y * runner.in(weights)).sum()}, inputs, {}, std::nullopt, false, true);
    };
    const auto actual = differentiate(mixer_of(s)), expected = differentiate(reference_of(s));
    const auto parameters = s.mixer.parameters();
    double largest = 0;  // a gradient that is zero but for rounding is measured against the others
    for (const auto& gradient : expected)
      if (gradient.defined() && gradient.numel())
        largest = std::max(largest, gradient.abs().max().item<double>());
    for (size_t i = 0; i < actual.size(); ++i) {
      if (!expected[i].defined() && !actual[i].defined()) continue;
      const auto name = i == 0 ? std::string("x") : parameters[i - 1].name;
      // A gradient that is not there is zero: one token read before the state decays has none for the decay.
      const auto wide = expected[i].defined() ? expected[i] : at::zeros(actual[i].sizes(), at::kDouble);
      const auto found = actual[i].defined() ? Runner::out(actual[i]) : at::zeros_like(wide);
      worst.compare(found, wide, fmt::format("{}, {}", text(shape), name), 0.01 * largest);
    }
  }
  // Sums over all tokens lose more than one output does.
  result.error /= 10;
  s.mixer.requires_grad(false);
  s.reference.requires_grad(false);
}

bool always(const Subject&) { return true; }
bool causal_only(const Subject& s) { return s.mixer.causal(); }
bool fp64_only(const Subject& s) { return s.dtype == at::kDouble && s.device.is_cpu(); }
bool fp32_only(const Subject& s) { return s.dtype == at::kFloat; }

}  // namespace

const std::vector<Form>& forms() {
  static const std::vector<Form> all = {
      {"whole", always, whole},
      {"step = whole", causal_only, step},
      {"chunked = whole", causal_only, chunked},
      {"packed = separate", always, segmented},
      {"reversed = flipped", causal_only, reversed},
      {"commit(n) = whole on n", causal_only, commit},
      {"fork", causal_only, fork},
      {"summary = whole", causal_only, summary},
      {"save, load = uninterrupted", causal_only, save_load},
      {"causality", always, causality},
      {"state bytes", causal_only, state_bytes},
      {"gradients = finite differences", fp64_only, gradients},
      {"gradients = fp64 gradients", fp32_only, kernel_gradients},
  };
  return all;
}

}  // namespace weft::conformance
