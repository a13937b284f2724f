// Several mixers side by side over the same input, added or averaged, as the heads of Hymba (Dong et al.
// 2024, arXiv:2411.13676) and Falcon-H1 (Zuo et al. 2025, arXiv:2507.22448). Ports of branch i are called
// "i.port": export: {0.memory: m}.
#include <algorithm>

#include "base/error.h"
#include "nn/mixer.h"

namespace weft {
namespace {

class Parallel final : public SequenceMixer {
 public:
  struct Options {
    Node branches;
    std::string combine = "sum";
    std::vector<double> scales, input_scales;
    void fields(Fields& f) {
      f("branches", branches, "list of mixers, [{mixer: NAME, ...}, ...]");
      f("combine", combine, "how the branches' outputs become one", one_of({"sum", "mean"}));
      f("scales", scales, "multiplies each branch's output; empty means 1");
      f("input_scales", input_scales, "multiplies each branch's input; empty means 1");
    }
  };

  Parallel(const Options& options, const Site& site)
      : scales_(options.scales), input_scales_(options.input_scales) {
    require(options.branches.is_list() && !options.branches.items().empty(),
            "{}: parallel needs branches: [{{mixer: NAME, ...}}, ...]", site.where);
    const auto& items = options.branches.items();
    for (auto* scales : {&scales_, &input_scales_}) {
      require(scales->empty() || scales->size() == items.size(), "{}: {} scales for {} branches", site.where,
              scales->size(), items.size());
      scales->resize(items.size(), 1.0);
    }
    if (options.combine == "mean")
      for (auto& scale : scales_) scale /= static_cast<double>(items.size());
    for (size_t i = 0; i < items.size(); ++i) {
      Site inner = site;
      inner.where = items[i].where();
      branches_.push_back(make_mixer(items[i], inner));
      add_child(name(i), *branches_.back());
    }
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    return each(x, state, context,
                [](SequenceMixer& m, const at::Tensor& x, State& s, const Context& c, size_t) {
                  return m.run(x, s, c);
                });
  }
  at::Tensor step(const at::Tensor& x, State& state, const Context& context) override {
    return each(x, state, context,
                [](SequenceMixer& m, const at::Tensor& x, State& s, const Context& c, size_t) {
                  return m.step(x, s, c);
                });
  }
  at::Tensor tentative(const at::Tensor& x, State& state, const Context& context, Draft& draft) override {
    draft.tokens = x.size(1);
    draft.inner.assign(branches_.size(), {});
    return each(x, state, context,
                [&](SequenceMixer& m, const at::Tensor& x, State& s, const Context& c, size_t i) {
                  return m.tentative(x, s, c, draft.inner[i]);
                });
  }
  void commit(const at::Tensor& n, State& state, Draft& draft) override {
    for (size_t i = 0; i < branches_.size(); ++i)
      branches_[i]->commit(n, state.child(name(i)), draft.inner[i]);
  }
  Summary summary(const at::Tensor& x, const State& state, const Context& context) override {
    Summary all;
    for (size_t i = 0; i < branches_.size(); ++i)
      all.children[name(i)] = branches_[i]->summary(scaled(x, input_scales_[i]), state.children().at(name(i)),
                                                    inner_context(context, i, nullptr));
    return all;
  }

  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    for (size_t i = 0; i < branches_.size(); ++i)
      state.child(name(i)) = branches_[i]->initial_state(batch, options);
    return state;
  }
  bool causal() const override {
    for (const auto& branch : branches_)
      if (!branch->causal()) return false;
    return true;
  }
  bool takes_wide_input() const override {
    return std::all_of(branches_.begin(), branches_.end(),
                       [](const auto& b) { return b->takes_wide_input(); });
  }
  std::vector<std::string> import_ports() const override { return ports(&SequenceMixer::import_ports); }
  std::vector<std::string> export_ports() const override { return ports(&SequenceMixer::export_ports); }
  int64_t state_bytes(int64_t tokens, at::ScalarType dtype) const override {
    int64_t total = 0;
    for (const auto& branch : branches_) total += branch->state_bytes(tokens, dtype);
    return total;
  }
  double op_flops(int64_t context) const override {
    double total = 0;
    for (const auto& branch : branches_) total += branch->op_flops(context);
    return total;
  }
  std::vector<std::string> ops() const override {
    std::vector<std::string> all;
    for (const auto& branch : branches_)
      for (const auto& op : branch->ops())
        if (std::find(all.begin(), all.end(), op) == all.end()) all.push_back(op);
    return all;
  }

 private:
  static std::string name(size_t i) { return "branch" + std::to_string(i); }
  static std::string prefix(size_t i) { return std::to_string(i) + "."; }

  std::vector<std::string> ports(std::vector<std::string> (SequenceMixer::*list)() const) const {
    std::vector<std::string> all;
    for (size_t i = 0; i < branches_.size(); ++i)
      for (const auto& port : ((*branches_[i]).*list)()) all.push_back(prefix(i) + port);
    return all;
  }

  static Context inner_context(const Context& context, size_t i, Strands* exports) {
    Context inner = context;
    inner.imports.clear();
    for (const auto& [port, strand] : context.imports)
      if (port.rfind(prefix(i), 0) == 0) inner.imports[port.substr(prefix(i).size())] = strand;
    inner.exports = exports;
    return inner;
  }

  template <class F>
  at::Tensor each(const at::Tensor& x, State& state, const Context& context, F&& form) {
    at::Tensor sum;
    for (size_t i = 0; i < branches_.size(); ++i) {
      Strands wanted;
      for (const auto& port : branches_[i]->export_ports())
        if (context.wants(prefix(i) + port)) wanted[port] = {};
      auto y = form(*branches_[i], scaled(x, input_scales_[i]), state.child(name(i)),
                    inner_context(context, i, &wanted), i);
      for (auto& [port, strand] : wanted) (*context.exports)[prefix(i) + port] = std::move(strand);
      y = scaled(y, scales_[i]);
      sum = sum.defined() ? sum + y : y;
    }
    return sum;
  }

  static at::Tensor scaled(const at::Tensor& x, double factor) { return factor == 1.0 ? x : x * factor; }

  std::vector<double> scales_, input_scales_;
  std::vector<std::unique_ptr<SequenceMixer>> branches_;
};
const Register<Parallel> register_parallel{"parallel", "several mixers over the same input, added"};

}  // namespace
}  // namespace weft
