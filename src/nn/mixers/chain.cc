// Stages one behind another as one branch: sequence mixers and channel mixers, each on what the one before gave. So a
// convolution behind attention, or behind experts, has a state of its own (Inkling, Thinking Machines 2026):
//   y = f_n(... f_2(f_1(x)))
// Ports of stage i are called "i.port": export: {0.kv: shared}.
#include <algorithm>

#include "base/error.h"
#include "nn/channel.h"
#include "nn/mixer.h"

namespace weft {
namespace {

class Chain final : public SequenceMixer {
 public:
  struct Options {
    Node stages;
    void fields(Fields& f) {
      f("stages", stages,
        "list of sequence mixers {mixer: NAME, ...} and channel mixers {ffn: {NAME: options}}");
    }
  };

  Chain(const Options& options, const Site& site) {
    require(options.stages.is_list() && !options.stages.items().empty(),
            "{}: chain needs stages: [{{mixer: NAME, ...}}, {{ffn: {{NAME: options}}}}, ...]", site.where);
    for (const auto& item : options.stages.items()) {
      Site inner = site;
      inner.where = item.where();
      Stage stage;
      if (const Node* ffn = item.find("ffn")) {
        require(item.entries().size() == 1, "{}: a stage is one mixer or one ffn", item.where());
        stage.channel = make_channel_mixer(*ffn, inner);
        add_child(name(stages_.size()), *stage.channel);
      } else {
        stage.mixer = make_mixer(item, inner);
        add_child(name(stages_.size()), *stage.mixer);
        require(stages_.empty() || stage.mixer->inputs() == 1,
                "{}: only the first stage may take several inputs", item.where());
      }
      stages_.push_back(std::move(stage));
    }
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    return each(x, state, context,
                [](SequenceMixer& m, const at::Tensor& u, State& s, const Context& c, size_t) {
                  return m.run(u, s, c);
                });
  }
  at::Tensor step(const at::Tensor& x, State& state, const Context& context) override {
    return each(x, state, context,
                [](SequenceMixer& m, const at::Tensor& u, State& s, const Context& c, size_t) {
                  return m.step(u, s, c);
                });
  }
  at::Tensor tentative(const at::Tensor& x, State& state, const Context& context, Draft& draft) override {
    draft.tokens = x.size(1);
    draft.inner.assign(stages_.size(), {});
    return each(x, state, context,
                [&](SequenceMixer& m, const at::Tensor& u, State& s, const Context& c, size_t i) {
                  return m.tentative(u, s, c, draft.inner[i]);
                });
  }
  void commit(const at::Tensor& n, State& state, Draft& draft) override {
    for (size_t i = 0; i < stages_.size(); ++i)
      if (stages_[i].mixer) stages_[i].mixer->commit(n, state.child(name(i)), draft.inner[i]);
  }

  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    for (size_t i = 0; i < stages_.size(); ++i)
      if (stages_[i].mixer) state.child(name(i)) = stages_[i].mixer->initial_state(batch, options);
    return state;
  }
  int64_t inputs() const override { return stages_.front().mixer ? stages_.front().mixer->inputs() : 1; }
  bool causal() const override {
    return std::all_of(stages_.begin(), stages_.end(),
                       [](const Stage& s) { return !s.mixer || s.mixer->causal(); });
  }
  std::vector<std::string> import_ports() const override { return ports(&SequenceMixer::import_ports); }
  std::vector<std::string> export_ports() const override { return ports(&SequenceMixer::export_ports); }
  int64_t state_bytes(int64_t tokens, at::ScalarType dtype) const override {
    int64_t total = 0;
    for (const auto& stage : stages_)
      if (stage.mixer) total += stage.mixer->state_bytes(tokens, dtype);
    return total;
  }
  double op_flops(int64_t context) const override {
    double total = 0;
    for (const auto& stage : stages_)
      if (stage.mixer) total += stage.mixer->op_flops(context);
    return total;
  }
  std::vector<std::string> ops() const override {
    std::vector<std::string> all;
    for (const auto& stage : stages_)
      if (stage.mixer)
        for (const auto& op : stage.mixer->ops())
          if (std::find(all.begin(), all.end(), op) == all.end()) all.push_back(op);
    return all;
  }

 private:
  struct Stage {
    std::unique_ptr<SequenceMixer> mixer;  // one of the two
    std::unique_ptr<ChannelMixer> channel;
  };
  static std::string name(size_t i) { return "stage" + std::to_string(i); }
  static std::string prefix(size_t i) { return std::to_string(i) + "."; }

  std::vector<std::string> ports(std::vector<std::string> (SequenceMixer::*list)() const) const {
    std::vector<std::string> all;
    for (size_t i = 0; i < stages_.size(); ++i)
      if (stages_[i].mixer)
        for (const auto& port : ((*stages_[i].mixer).*list)()) all.push_back(prefix(i) + port);
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
    auto y = x;
    for (size_t i = 0; i < stages_.size(); ++i) {
      if (stages_[i].channel) {
        y = stages_[i].channel->run(y, context);
        continue;
      }
      auto& mixer = *stages_[i].mixer;
      Strands wanted;
      for (const auto& port : mixer.export_ports())
        if (context.wants(prefix(i) + port)) wanted[port] = {};
      y = form(mixer, y, state.child(name(i)), inner_context(context, i, &wanted), i);
      for (auto& [port, strand] : wanted) (*context.exports)[prefix(i) + port] = std::move(strand);
    }
    return y;
  }

  std::vector<Stage> stages_;
};
const Register<Chain> register_chain{"chain", "mixers and channel mixers one behind another, as one branch"};

}  // namespace
}  // namespace weft
