// The contract of a sequence mixer: x [B, T, D] -> y [B, T, D], remembering the past in a State. `run` and
// `initial_state` are enough to be one; every other form has a correct default here, and is overridden only
// to be faster. The conformance suite (nn/conformance.h) proves the forms equal for every registered mixer.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/fields.h"
#include "base/version.h"
#include "nn/context.h"
#include "nn/module.h"
#include "nn/state.h"

namespace weft {

// Where in a model a mixer stands; what its constructor may need to know.
struct Site {
  int64_t width = 0;        // D
  int64_t input_width = 0;  // of the mixer's input where it is wider than D (a layer's concat); 0: D
  int64_t layer = 0;        // index from 0 over the whole stack
  int64_t num_layers = 1;
  int64_t residual_branches =
      2;  // branches that add to the residual stream in one layer: mixer and channel mixer
  double norm_eps = 1e-5;
  std::string where =
      "layer";  // "tiny.yaml:14: layers[2]", for messages about options that do not fit the site
  // Initialisation of projections that write to the residual stream: 1 / sqrt(all branches of the stack).
  double residual_init() const;
  int64_t input() const { return input_width > 0 ? input_width : width; }
};

// One entry of a state after a span of tokens as an affine map of the entry before it.
struct AffineMap {
  at::Tensor
      factor;  // matrix: [B, ..., K, K], multiplies the state [B, ..., K, V] from the left; else elementwise
  at::Tensor offset;  // [B, ..., K, V]
  bool matrix = false;
  at::Tensor apply(const at::Tensor& before) const;
  AffineMap then(const AffineMap& next) const;  // first this span, then the next
};

// A span of tokens as a map of states: `maps` for entries that depend on what was before in an affine way,
// `rest` holds the other entries as they stand after the span (they depend on the last few inputs only, as
// convolution tails do).
struct Summary {
  std::map<std::string, AffineMap> maps;
  State rest;
  std::map<std::string, Summary> children;  // of inner mixers
  State apply(const State& before) const;   // the state after the span
};

// What a tentative run leaves for commit.
struct Draft {
  State before;              // as it was, for running again
  at::Tensor x;              // [B, T, D] the draft tokens
  Context context;           // of the draft call
  int64_t tokens = 0;        // T
  std::vector<Draft> inner;  // of inner mixers
};

class SequenceMixer : public Module {
 public:
  // Whole and chunked form: all T >= 0 tokens of x [B, T, D], continuing from `state`, which is moved
  // forward.
  virtual at::Tensor run(const at::Tensor& x, State& state, const Context& context) = 0;
  // The state before the first token. `options` gives device and activation type; recurrent states are fp32
  // (or fp64).
  virtual State initial_state(int64_t batch, const at::TensorOptions& options) const = 0;

  // One token, T = 1, without gradients.
  virtual at::Tensor step(const at::Tensor& x, State& state, const Context& context) {
    return run(x, state, context);
  }
  // Right to left: y_t depends on x_t, x_{t+1}, ...; without a state.
  virtual at::Tensor run_reversed(const at::Tensor& x, const Context& context);

  // Runs T draft tokens; afterwards `commit` keeps the first n of them (n [B] int64 on the CPU, 0 <= n <= T,
  // one for each row) and leaves in `state` what a run on just those n tokens would have left.
  virtual at::Tensor tentative(const at::Tensor& x, State& state, const Context& context, Draft& draft);
  virtual void commit(const at::Tensor& n, State& state, Draft& draft);

  // The span as a map of states. Only the entries that are not in the maps are read from `state`. Throws
  // Unsupported, saying why and what to use instead, when no such map exists.
  virtual Summary summary(const at::Tensor& x, const State& state, const Context& context);

  // False for mixers that look ahead: they have the whole form only and an empty state.
  virtual bool causal() const { return true; }
  // How many inputs of D it takes, side by side in x [B, T, inputs D]: attention may compute q, k and v from different
  // ones.
  virtual int64_t inputs() const { return 1; }
  // Whether it was made for inputs of Site::input() channels; most mixers take those of the model's width only.
  virtual bool takes_wide_input() const { return false; }
  // Names under which it reads and offers strands (see Context::imports and exports).
  virtual std::vector<std::string> import_ports() const { return {}; }
  virtual std::vector<std::string> export_ports() const { return {}; }

  // Bytes of state of one sequence after `tokens` tokens of one document.
  virtual int64_t state_bytes(int64_t tokens, at::ScalarType dtype) const;
  // Flops a token beyond the weights' two a parameter, with so many tokens before it.
  virtual double op_flops(int64_t) const { return 0; }
  // The op families it runs on, for `weft inspect`.
  virtual std::vector<std::string> ops() const { return {}; }
};

// The registry. A mixer class M has
//   struct M::Options { ...; void fields(Fields&); };   M(const M::Options&, const Site&);
// and one line `const Register<M> register_m{"name", "one sentence"};` makes it known to YAML, help, docs,
// the conformance suite and plug-ins.
struct MixerEntry {
  std::string name, summary;
  std::vector<FieldInfo> fields;
  std::function<std::unique_ptr<SequenceMixer>(const Node& node, const Site& site,
                                               const std::vector<std::string>& ignore)>
      make;
  std::function<Node(const Node& node, const std::vector<std::string>& ignore)>
      resolve;  // all options written out
};

void register_mixer(MixerEntry entry);           // InputError when the name is taken
const MixerEntry& find_mixer(const Node& name);  // InputError at the node, with the nearest known name
std::vector<std::string> mixer_names();          // sorted

// Makes the mixer that `node` describes: {mixer: NAME, option: value, ...}. `ignore` are keys of the node
// that belong to the layer around it.
std::unique_ptr<SequenceMixer> make_mixer(const Node& node, const Site& site,
                                          const std::vector<std::string>& ignore = {});

template <class M>
struct Register {
  Register(const char* name, const char* summary) {
    register_mixer({.name = name,
                    .summary = summary,
                    .fields = list_options<typename M::Options>(),
                    .make = [name = std::string(name)](
                                const Node& node, const Site& site,
                                const std::vector<std::string>& ignore) -> std::unique_ptr<SequenceMixer> {
                      return std::make_unique<M>(read_options<typename M::Options>(node, name, ignore), site);
                    },
                    .resolve =
                        [name = std::string(name)](const Node& node, const std::vector<std::string>& ignore) {
                          return write_options(read_options<typename M::Options>(node, name, ignore));
                        }});
  }
};

}  // namespace weft
