#include "nn/stack.h"

#include <algorithm>
#include <set>

#include "base/error.h"
#include "base/text.h"
#include "nn/pattern.h"
#include "nn/recompute.h"

namespace weft {
namespace {

std::string layer_name(size_t index) { return "layers." + std::to_string(index); }
std::string state_name(size_t index) { return "layer" + std::to_string(index); }

// One layer with recomputation: its imports are inputs and its exports are outputs, so that gradients cross.
at::Tensor run_recomputed(Layer& layer, const at::Tensor& x, const State& state, const Context& context,
                          Strands& strands) {
  std::vector<at::Tensor> inputs{x};
  std::vector<std::pair<std::string, std::string>> slots;  // strand, tensor
  for (const auto& [port, name] : layer.imports())
    for (const auto& [key, tensor] : strands.at(name).tensors) {
      inputs.push_back(tensor);
      slots.emplace_back(name, key);
    }
  std::map<std::string, std::vector<std::string>> keys;  // of each exported strand
  Strands exported;
  auto body = [&layer, state, context, strands, slots](const std::vector<at::Tensor>& in,
                                                       Strands& out_strands) {
    State scratch = state;
    Strands local = strands;
    for (size_t i = 0; i < slots.size(); ++i) local[slots[i].first].tensors[slots[i].second] = in[i + 1];
    auto y = layer.run(in[0], scratch, context, local);
    std::vector<at::Tensor> out{y};
    for (const auto& [port, name] : layer.exports()) {
      for (const auto& [key, tensor] : local.at(name).tensors) out.push_back(tensor);
      out_strands[name] = local.at(name);
    }
    return out;
  };
  // The tensors of `exported` are the inner ones; they are replaced by the outputs, which carry the
  // gradients.
  auto shape_of_exports = std::make_shared<Strands>();
  const auto outputs = recompute(inputs, [body, shape_of_exports](const std::vector<at::Tensor>& in) {
    return body(in, *shape_of_exports);
  });
  size_t next = 1;
  for (const auto& [port, name] : layer.exports()) {
    Strand strand = shape_of_exports->at(name);
    for (auto& [key, tensor] : strand.tensors) tensor = outputs[next++];
    strands[name] = std::move(strand);
  }
  shape_of_exports->clear();
  return outputs[0];
}

}  // namespace

LayerStack::LayerStack(const Node& layers, const LayerOptions& defaults, int64_t width) {
  const auto nodes = expand_pattern(layers);
  std::set<std::string> exported;
  for (size_t i = 0; i < nodes.size(); ++i) {
    const Site site{
        .width = width, .layer = static_cast<int64_t>(i), .num_layers = static_cast<int64_t>(nodes.size())};
    layers_.push_back(std::make_unique<Layer>(nodes[i], defaults, site));
    add_child(layer_name(i), *layers_.back());
    for (const auto& [port, name] : layers_.back()->imports()) {
      if (exported.count(name)) continue;
      const std::vector<std::string> known(exported.begin(), exported.end());
      const auto guess = nearest_word(name, known);
      throw InputError(fmt::format("{}: imports '{}', but no layer above exports it{}; exported so far: {}",
                                   nodes[i].find("import") ? nodes[i].at("import").where() : nodes[i].where(),
                                   name, guess.empty() ? "" : ", did you mean '" + guess + "'?",
                                   known.empty() ? "nothing" : join(known)));
    }
    for (const auto& [port, name] : layers_.back()->exports()) exported.insert(name);
  }
}

at::Tensor LayerStack::run_layers(const at::Tensor& x, State& state, const Context& context, Layer::Form form,
                                  Draft* draft) {
  Strands strands = context.imports;
  auto y = x;
  for (size_t i = 0; i < layers_.size(); ++i) {
    State& own = state.child(state_name(i));
    if (recompute_ && !context.keep_state && form == Layer::Form::run)
      y = run_recomputed(*layers_[i], y, own, context, strands);
    else
      y = layers_[i]->run(y, own, context, strands, form, draft ? &draft->inner[i] : nullptr);
  }
  return y;
}

MixerInput LayerStack::mixer_input(const at::Tensor& x, int64_t layer, const Context& context) {
  const auto count = static_cast<int64_t>(layers_.size());
  require(layer >= 0 && layer < count, "layer {}: the model has {} layers, counted from 0", layer, count);
  Strands strands = context.imports;
  auto state = initial_state(x.size(0), x.options());
  auto y = x;
  for (size_t i = 0; i < static_cast<size_t>(layer); ++i)
    y = layers_[i]->run(y, state.child(state_name(i)), context, strands);
  return layers_[static_cast<size_t>(layer)]->mixer_input(y, context, strands);
}

at::Tensor LayerStack::run(const at::Tensor& x, State& state, const Context& context) {
  return run_layers(x, state, context, Layer::Form::run, nullptr);
}

at::Tensor LayerStack::step(const at::Tensor& x, State& state, const Context& context) {
  return run_layers(x, state, context, Layer::Form::step, nullptr);
}

at::Tensor LayerStack::tentative(const at::Tensor& x, State& state, const Context& context, Draft& draft) {
  draft.tokens = x.size(1);
  draft.inner.assign(layers_.size(), {});
  return run_layers(x, state, context, Layer::Form::tentative, &draft);
}

void LayerStack::commit(const at::Tensor& n, State& state, Draft& draft) {
  for (size_t i = 0; i < layers_.size(); ++i)
    if (auto* mixer = layers_[i]->mixer()) mixer->commit(n, state.child(state_name(i)), draft.inner[i]);
}

State LayerStack::initial_state(int64_t batch, const at::TensorOptions& options) const {
  State state;
  for (size_t i = 0; i < layers_.size(); ++i) {
    State& own = state.child(state_name(i));
    if (const auto* mixer = layers_[i]->mixer()) own = mixer->initial_state(batch, options);
  }
  return state;
}

bool LayerStack::causal() const {
  return std::all_of(layers_.begin(), layers_.end(),
                     [](const auto& l) { return !l->mixer() || l->mixer()->causal(); });
}

int64_t LayerStack::state_bytes(int64_t tokens, at::ScalarType dtype) const {
  int64_t total = 0;
  for (const auto& layer : layers_)
    if (layer->mixer()) total += layer->mixer()->state_bytes(tokens, dtype);
  return total;
}

double LayerStack::op_flops(int64_t context) const {
  double total = 0;
  for (const auto& layer : layers_)
    if (layer->mixer()) total += layer->mixer()->op_flops(context);
  return total;
}

std::vector<std::string> LayerStack::ops() const {
  std::set<std::string> all;
  for (const auto& layer : layers_)
    if (layer->mixer())
      for (const auto& op : layer->mixer()->ops()) all.insert(op);
  return {all.begin(), all.end()};
}

Node LayerStack::describe() const {
  Node list = Node::list();
  for (const auto& layer : layers_) list.push_back(layer->node());
  return list;
}

}  // namespace weft
