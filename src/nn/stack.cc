#include "nn/stack.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "base/error.h"
#include "base/text.h"
#include "nn/pattern.h"
#include "nn/recompute.h"

namespace weft {
namespace {

std::string layer_name(size_t index) { return "layers." + std::to_string(index); }

// The parts of a stream that are there, one after another, and back.
std::vector<at::Tensor> parts_of(const Stream& stream) {
  std::vector<at::Tensor> parts;
  for (const auto& tensor : stream.tensors())
    if (tensor.defined()) parts.push_back(tensor);
  return parts;
}
// `like` says which are there; begin is the first of them.
Stream stream_of(const Stream& like, std::vector<at::Tensor>::const_iterator begin) {
  auto tensors = like.tensors();
  for (auto& tensor : tensors)
    if (tensor.defined()) tensor = *begin++;
  return Stream::of(tensors);
}

// One layer with recomputation: the stream and its imports are inputs, the stream and its exports are outputs, so that
// gradients cross.
Stream run_recomputed(Layer& layer, const Stream& stream, const State& state, const Context& context,
                      Strands& strands) {
  std::vector<at::Tensor> inputs = parts_of(stream);
  const size_t of_stream = inputs.size();
  std::vector<std::pair<std::string, std::string>> slots;  // strand, tensor
  for (const auto& [port, name] : layer.imports())
    for (const auto& [key, tensor] : strands.at(name).tensors) {
      inputs.push_back(tensor);
      slots.emplace_back(name, key);
    }
  auto body = [&layer, stream, state, context, strands, slots, of_stream](
                  const std::vector<at::Tensor>& in, Strands& out_strands, Stream& out_stream) {
    State scratch = state;
    Strands local = strands;
    for (size_t i = 0; i < slots.size(); ++i)
      local[slots[i].first].tensors[slots[i].second] = in[i + of_stream];
    out_stream = stream_of(stream, in.begin());
    layer.run(out_stream, scratch, context, local);
    out_stream.settle();
    auto out = parts_of(out_stream);
    for (const auto& [port, name] : layer.exports()) {
      for (const auto& [key, tensor] : local.at(name).tensors) out.push_back(tensor);
      out_strands[name] = local.at(name);
    }
    return out;
  };
  // The tensors of `shape_of_*` are the inner ones; they are replaced by the outputs, which carry the gradients.
  auto shape_of_stream = std::make_shared<Stream>();
  auto shape_of_exports = std::make_shared<Strands>();
  const auto outputs =
      recompute(inputs, [body, shape_of_exports, shape_of_stream](const std::vector<at::Tensor>& in) {
        return body(in, *shape_of_exports, *shape_of_stream);
      });
  const auto after = stream_of(*shape_of_stream, outputs.begin());
  size_t next = parts_of(after).size();
  for (const auto& [port, name] : layer.exports()) {
    Strand strand = shape_of_exports->at(name);
    for (auto& [key, tensor] : strand.tensors) tensor = outputs[next++];
    strands[name] = std::move(strand);
  }
  shape_of_exports->clear();
  *shape_of_stream = {};
  return after;
}

}  // namespace

void LoopOptions::fields(Fields& f) {
  f("begin", begin, "first layer of the loop, counted from 0", at_least(0));
  f("end", end, "layer behind the last of the loop", at_least(0));
  f("passes", passes, "how often its layers run", at_least(1));
}

std::string LayerStack::Visit::state_name() const {
  const auto name = "layer" + std::to_string(layer);
  return pass == 0 ? name : name + ".pass" + std::to_string(pass);
}

LayerStack::LayerStack(const Node& layers, const LayerOptions& defaults, int64_t width,
                       const StackOptions& options)
    : residual_(make_residual(options.residual, width)), residual_node_(resolve_residual(options.residual)) {
  const auto nodes = expand_pattern(layers);
  const auto count = static_cast<int64_t>(nodes.size());
  if (!options.loop.is_null()) loop_ = read_options<LoopOptions>(options.loop, "loop");
  require(loop_.begin <= loop_.end && loop_.end <= count,
          "{}: layers {} to {} (not included) of a stack of {} layers", options.loop.where(), loop_.begin,
          loop_.end, count);
  add_child("residual", *residual_);
  std::set<std::string> exported(options.given.begin(), options.given.end());
  std::map<std::string, ParameterShare> shares;
  for (size_t i = 0; i < nodes.size(); ++i) {
    const auto index = static_cast<int64_t>(i);
    const Site site{.width = width, .layer = index, .num_layers = count};
    const bool looped = index >= loop_.begin && index < loop_.end;
    const auto make = [&] {
      layers_.push_back(std::make_unique<Layer>(nodes[i], defaults, site, *residual_, looped));
    };
    const Node* share = nodes[i].find("share");
    if (share && !share->as_string().empty())
      shares[share->as_string()].make(nodes[i].where(), make);
    else
      make();
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
  visits_ = visits();
}

std::vector<LayerStack::Visit> LayerStack::visits() const {
  std::vector<Visit> all;
  const auto add = [&](int64_t begin, int64_t end, int64_t pass, bool loop) {
    for (int64_t i = begin; i < end; ++i)
      all.push_back({.layer = static_cast<size_t>(i), .pass = pass, .begins_pass = loop && i == begin});
  };
  add(0, loop_.begin, 0, false);
  for (int64_t pass = 0; pass < loop_.passes; ++pass) add(loop_.begin, loop_.end, pass, true);
  add(loop_.end, static_cast<int64_t>(layers_.size()), 0, false);
  return all;
}

Stream LayerStack::run_until(size_t count, const at::Tensor& x, State& state, const Context& context,
                             Strands& strands, Layer::Form form, Draft* draft) {
  auto stream = residual_->begin(x);
  Stream before;  // the loop
  for (size_t i = 0; i < count; ++i) {
    const auto& visit = visits_[i];
    if (visit.begins_pass && visit.pass == 0) before = stream;
    if (visit.begins_pass && visit.pass > 0) stream = residual_->next_pass(before, std::move(stream));
    auto& layer = *layers_[visit.layer];
    State& own = state.child(visit.state_name());
    if (recompute_ && !context.keep_state && form == Layer::Form::run)
      stream = run_recomputed(layer, stream, own, context, strands);
    else
      layer.run(stream, own, context, strands, form, draft ? &draft->inner[i] : nullptr);
  }
  return stream;
}

bool LayerStack::reads(const std::string& strand) const {
  return std::any_of(layers_.begin(), layers_.end(), [&](const auto& layer) {
    const auto& imports = layer->imports();
    return std::any_of(imports.begin(), imports.end(),
                       [&](const auto& item) { return item.second == strand; });
  });
}

at::Tensor LayerStack::run_layers(const at::Tensor& x, State& state, const Context& context, Layer::Form form,
                                  Draft* draft) {
  Strands strands = context.imports;
  auto stream = run_until(visits_.size(), x, state, context, strands, form, draft);
  return residual_->end(stream);
}

MixerInput LayerStack::mixer_input(const at::Tensor& x, int64_t layer, const Context& context) {
  const auto count = static_cast<int64_t>(layers_.size());
  require(layer >= 0 && layer < count, "layer {}: the model has {} layers, counted from 0", layer, count);
  Strands strands = context.imports;
  auto state = initial_state(x.size(0), x.options());
  const auto first = std::find_if(visits_.begin(), visits_.end(),
                                  [&](const Visit& v) { return v.layer == static_cast<size_t>(layer); });
  const auto stream = run_until(static_cast<size_t>(first - visits_.begin()), x, state, context, strands,
                                Layer::Form::run, nullptr);
  return layers_[static_cast<size_t>(layer)]->mixer_input(stream, context, strands);
}

at::Tensor LayerStack::run(const at::Tensor& x, State& state, const Context& context) {
  return run_layers(x, state, context, Layer::Form::run, nullptr);
}

at::Tensor LayerStack::step(const at::Tensor& x, State& state, const Context& context) {
  return run_layers(x, state, context, Layer::Form::step, nullptr);
}

at::Tensor LayerStack::tentative(const at::Tensor& x, State& state, const Context& context, Draft& draft) {
  draft.tokens = x.size(1);
  draft.inner.assign(visits_.size(), {});
  return run_layers(x, state, context, Layer::Form::tentative, &draft);
}

void LayerStack::commit(const at::Tensor& n, State& state, Draft& draft) {
  for (size_t i = 0; i < visits_.size(); ++i)
    if (auto* mixer = layers_[visits_[i].layer]->mixer())
      mixer->commit(n, state.child(visits_[i].state_name()), draft.inner[i]);
}

State LayerStack::initial_state(int64_t batch, const at::TensorOptions& options) const {
  State state;
  for (const auto& visit : visits_) {
    State& own = state.child(visit.state_name());
    if (const auto* mixer = layers_[visit.layer]->mixer()) own = mixer->initial_state(batch, options);
  }
  return state;
}

bool LayerStack::causal() const {
  return std::all_of(layers_.begin(), layers_.end(),
                     [](const auto& l) { return !l->mixer() || l->mixer()->causal(); });
}

void LayerStack::each_mixer(const std::function<void(const SequenceMixer&, int64_t)>& f) const {
  for (size_t i = 0; i < layers_.size(); ++i) {
    const auto index = static_cast<int64_t>(i);
    if (const auto* mixer = layers_[i]->mixer())
      f(*mixer, index >= loop_.begin && index < loop_.end ? loop_.passes : 1);
  }
}

int64_t LayerStack::state_bytes(int64_t tokens, at::ScalarType dtype) const {
  int64_t total = 0;
  each_mixer([&](const SequenceMixer& m, int64_t times) { total += times * m.state_bytes(tokens, dtype); });
  return total;
}

double LayerStack::op_flops(int64_t context) const {
  double total = 0;
  each_mixer([&](const SequenceMixer& m, int64_t times) {
    total += static_cast<double>(times) * m.op_flops(context);
  });
  for (auto i = loop_.begin; i < loop_.end; ++i)  // the weights of a loop once more in every later pass
    total +=
        2.0 * static_cast<double>((loop_.passes - 1) * layers_[static_cast<size_t>(i)]->matrix_weights());
  return total;
}

std::vector<std::string> LayerStack::ops() const {
  std::set<std::string> all;
  each_mixer([&](const SequenceMixer& m, int64_t) {
    for (const auto& op : m.ops()) all.insert(op);
  });
  return {all.begin(), all.end()};
}

StackOptions LayerStack::options() const { return {residual_node_, write_options(loop_), {}}; }

Node LayerStack::describe() const {
  Node list = Node::list();
  for (const auto& layer : layers_) list.push_back(layer->node());
  return list;
}

}  // namespace weft
