#include "nn/model.h"

#include <ATen/core/Reduction.h>

#include "base/error.h"
#include "ops/linear/linear.h"
#include "ops/loss/loss.h"
#include "ops/shape.h"

namespace weft {

void ModelOptions::fields(Fields& f) {
  f("name", name, "name of the model");
  f("vocab", vocab, "vocabulary size; 0: as many as the tokenizer has", at_least(0));
  f("width", width, "D, width of the residual stream", at_least(1));
  f("features", features, "F, numbers of each position where the inputs are not tokens; 0: tokens",
    at_least(0));
  f("outputs", outputs, "O, numbers that the head gives; 0: logits of the vocabulary", at_least(0));
  f("pool", pool,
    "what stands for a whole row: none gives outputs at every position, flatten all of them (positions)",
    one_of({"none", "mean", "last", "flatten"}));
  f("positions", positions, "learned absolute positions, longest row; 0: none", at_least(0));
  f("tie", tie, "the head shares the embedding's weights");
  f("norm", norm, "norm before the head; rms_zero_centered scales by 1 + weight", one_of(norm_names()));
  f("norm_eps", norm_eps, "added to the mean square before the root", above(0));
  f("embedding_scale", embedding_scale, "multiplies embeddings");
  f("embedding_std", embedding_std, "standard deviation of the embeddings' initialisation", above(0));
  f("logit_scale", logit_scale, "multiplies logits");
  f("logit_softcap", logit_softcap, "c: logits become c tanh(logits / c); 0: as they are", at_least(0));
  f("logits", logits, "how many of the vocabulary's logits there are; 0: all", at_least(0));
  f("head_bias", head_bias, "bias of a head that is not tied");
  f("embedding_norm", embedding_norm, "norm of embeddings, before their scale", one_of(norm_names()));
  f("embedding_norm_eps", embedding_norm_eps, "as norm_eps, of the norm of embeddings; 0 means norm_eps",
    at_least(0));
  f("fp32_residual", fp32_residual, "keep the residual stream in fp32 in bf16 and fp16 runs");
  f("residual", residual, "kind of residual stream, {KIND: options}; empty: x + f(norm(x))");
  f("loop", loop, "layers that run several times, {begin, end, passes}");
  f("defaults", defaults, "options for all layers");
  f("layers", layers, "the layer pattern");
}

ModelState ModelState::select(const at::Tensor& rows) const {
  return {layers.select(rows), position.index_select(0, rows)};
}

Model::Model(const ModelOptions& options) : options_(options) {
  require(options.width >= 1, "model.width is missing; give the width of the residual stream");
  require(options.vocab >= 1 || options.features >= 1,
          "model.vocab is missing; give a vocabulary size or a tokenizer");
  require(options.outputs >= 1 || options.features == 0,
          "model.outputs is missing; a model of features has no vocabulary to predict");
  require(options.outputs >= 1 || options.pool == "none", "model.pool: {} needs model.outputs", options.pool);
  require(!options.layers.is_null(), "model.layers is missing; give a list of layers");
  require(options.logits <= options.vocab, "model.logits: {}, but the vocabulary has {}", options.logits,
          options.vocab);
  require(!options.head_bias || (!options.tie && options.outputs == 0),
          "model.head_bias: needs a head of its own: tie: false and no outputs");
  embedding_norm_ = norm("embedding_norm", norm_kind(options.embedding_norm), options.width,
                         options.embedding_norm_eps > 0 ? options.embedding_norm_eps : options.norm_eps);
  if (options.features > 0) {
    in_ = linear("in", options.features, options.width,
                 {.bias = true, .rules = {.role = ParameterRules::Role::embedding}});
  } else {
    embedding_ =
        parameter("embedding.weight", {options.vocab, options.width}, init::normal(options.embedding_std),
                  {.role = ParameterRules::Role::embedding, .weight_decay = false});
  }
  if (options.positions > 0)
    positions_ =
        parameter("positions.weight", {options.positions, options.width}, init::normal(options.embedding_std),
                  {.role = ParameterRules::Role::embedding, .weight_decay = false});
  StackOptions stack{options.residual, options.loop, {"embedding"}};
  if (options.features == 0) stack.given.push_back("tokens");
  stack_ = std::make_unique<LayerStack>(
      options.layers, read_options<LayerOptions>(options.defaults, "defaults"), options.width, stack);
  for (const auto& layer : stack_->layers())
    if (options.outputs == 0 && layer->mixer() && !layer->mixer()->causal())
      throw InputError(fmt::format("{}: the mixer {} looks ahead, but a language model reads left to right",
                                   layer->where(), layer->node().at("mixer").as_string()));
  add_child("stack", *stack_);
  norm_ = norm("norm", norm_kind(options.norm), options.width, options.norm_eps);
  if (options.outputs > 0) {
    const bool whole = options.pool == "flatten";
    require(!whole || options.positions > 0,
            "model.pool: flatten needs model.positions, the length of a row");
    out_ = linear("out", whole ? options.positions * options.width : options.width, options.outputs,
                  {.bias = true, .rules = {.role = ParameterRules::Role::embedding}});
  } else if (!options.tie) {
    head_ = parameter("head.weight", {options.vocab, options.width}, init::normal(options.embedding_std),
                      {.role = ParameterRules::Role::embedding, .weight_decay = true});
    if (options.head_bias) head_bias_ = vector_parameter("head.bias", {options.vocab}, init::constant(0));
  }
}

at::Device Model::device() const { return embedding_ ? embedding_->value.device() : in_.weight().device(); }

ModelState Model::initial_state(int64_t batch) const {
  const auto options = at::TensorOptions().dtype(compute_dtype_).device(device());
  return {stack_->initial_state(batch, options), at::zeros({batch}, at::kLong)};
}

at::Tensor Model::embed(const at::Tensor& ids, Context& context) const {
  at::Tensor x;
  if (options_.features > 0) {
    require(ids.dim() == 3 && ids.is_floating_point() && ids.size(2) == options_.features,
            "model: inputs are {} of type {}, expected [B, T, {}] numbers", shape_text(ids),
            c10::toString(ids.scalar_type()), options_.features);
    x = in_(ids.to(in_.weight().scalar_type()));
  } else {
    require(ids.dim() == 2 && ids.scalar_type() == at::kLong,
            "model: ids are {} of type {}, expected [B, T] int64", shape_text(ids),
            c10::toString(ids.scalar_type()));
    x = at::embedding(embedding_->value, ids);
  }
  x = embedding_norm_(x);
  if (options_.embedding_scale != 1.0) x = x * options_.embedding_scale;
  if (positions_ && ids.size(1) > 0) {
    const auto longest = context.positions.max().item<int64_t>() + 1;
    require(longest <= options_.positions, "model: a row of {} positions, but model.positions is {}", longest,
            options_.positions);
    x = x + at::embedding(positions_->value, context.positions);
  }
  const bool wide = options_.fp32_residual && compute_dtype_ != at::kDouble;
  x = x.to(wide ? at::kFloat : compute_dtype_);
  if (stack_->reads("embedding")) context.imports["embedding"] = {.tensors = {{"embedding", x}}};
  if (stack_->reads("tokens")) context.imports["tokens"] = {.tensors = {{"tokens", ids}}};
  return x;
}

at::Tensor Model::finish(const at::Tensor& x) const { return norm_(x).to(compute_dtype_); }

const at::Tensor& Model::head_weight() const {
  if (options_.outputs > 0) return out_.weight();
  return options_.tie ? embedding_->value : head_->value;
}

Context Model::context_of(const ModelState& state, const at::Tensor& ids, const at::Tensor& starts) const {
  auto context = Context::at_positions(state.position.to(ids.device()), ids.size(1), starts);
  context.dtype = compute_dtype_;
  context.training = training_;
  return context;
}

at::Tensor Model::run(const at::Tensor& ids, ModelState& state, const at::Tensor& starts) {
  auto context = context_of(state, ids, starts);
  const auto x = embed(ids, context);
  const auto y = stack_->run(x, state.layers, context);
  if (ids.size(1) > 0) state.position = context.positions.select(1, ids.size(1) - 1).to(at::kCPU) + 1;
  return finish(y);
}

at::Tensor Model::run(const at::Tensor& ids, const at::Tensor& starts) {
  ModelState state = initial_state(ids.size(0));
  auto context = context_of(state, ids, starts);
  context.keep_state = false;
  const auto x = embed(ids, context);
  return finish(stack_->run(x, state.layers, context));
}

MixerInput Model::mixer_input(const at::Tensor& inputs, int64_t layer) {
  auto context = context_of(initial_state(inputs.size(0)), inputs);
  const auto x = embed(inputs, context);
  return stack_->mixer_input(x, layer, context);
}

at::Tensor Model::step(const at::Tensor& ids, ModelState& state) {
  require(ids.dim() >= 2 && ids.size(1) == 1, "model: a step takes ids [B, 1], found {}", shape_text(ids));
  auto context = context_of(state, ids);
  state.position = state.position + 1;
  const auto x = embed(ids, context);
  return finish(stack_->step(x, state.layers, context));
}

at::Tensor Model::tentative(const at::Tensor& ids, ModelState& state, Draft& draft) {
  auto context = context_of(state, ids);
  const auto x = embed(ids, context);
  return finish(stack_->tentative(x, state.layers, context, draft));
}

void Model::commit(const at::Tensor& n, ModelState& state, Draft& draft) {
  stack_->commit(n, state.layers, draft);
  state.position = state.position + n;
}

at::Tensor Model::read_out(const at::Tensor& hidden) const {
  invariant(options_.outputs > 0, "outputs of a model that has a head over its vocabulary");
  if (options_.pool == "mean") return out_(hidden.mean(1));
  if (options_.pool == "last") return out_(hidden.select(1, -1));
  if (options_.pool == "flatten") {
    require(hidden.size(1) == options_.positions, "model: a row of {} positions, but pool: flatten needs {}",
            hidden.size(1), options_.positions);
    return out_(hidden.flatten(1));
  }
  return out_(hidden);
}

at::Tensor Model::outputs(const at::Tensor& inputs, const at::Tensor& starts) {
  return read_out(run(inputs, starts));
}

at::Tensor Model::outputs(const at::Tensor& inputs, ModelState& state, const at::Tensor& starts) {
  return read_out(run(inputs, state, starts));
}

at::Tensor Model::logits(const at::Tensor& hidden) const {
  require(options_.outputs == 0, "model: it has {} outputs and no logits of a vocabulary", options_.outputs);
  const auto type = hidden.scalar_type();
  const bool cut = logit_count() < options_.vocab;
  const auto rows = [&](const at::Tensor& x) { return (cut ? x.slice(0, 0, logit_count()) : x).to(type); };
  auto logits = ops::linear(hidden, rows(head_weight()), head_bias_ ? rows(head_bias_->value) : at::Tensor());
  if (options_.logit_scale != 1.0) logits = logits * options_.logit_scale;
  const double cap = options_.logit_softcap;
  return cap > 0 ? at::tanh(logits / cap) * cap : logits;
}

// hidden [B, T, D], targets [B, T] -> [B * T]. The fused loss knows a scale only; with a soft cap, a bias or fewer
// logits than rows of the head, logits are made for a block of tokens at a time.
at::Tensor Model::losses_of(const at::Tensor& hidden, const at::Tensor& targets) const {
  const auto rows = hidden.flatten(0, 1);
  const auto wanted = targets.flatten();
  const bool plain = options_.logit_softcap == 0 && !head_bias_ && options_.logits == 0;
  if (plain) return ops::linear_cross_entropy(rows, head_weight(), wanted, options_.logit_scale);
  constexpr int64_t kBlock = 256;
  std::vector<at::Tensor> losses;
  for (int64_t begin = 0; begin < rows.size(0); begin += kBlock) {
    const auto block = logits(rows.slice(0, begin, begin + kBlock));
    losses.push_back(at::cross_entropy_loss(block.to(accumulate_type(block)),
                                            wanted.slice(0, begin, begin + kBlock), {}, at::Reduction::None,
                                            ops::kIgnoreTarget));
  }
  return losses.empty() ? at::zeros({0}, rows.options()) : at::cat(losses);
}

at::Tensor Model::losses(const at::Tensor& ids, const at::Tensor& targets, const at::Tensor& starts) {
  return losses_of(run(ids, starts), targets);
}

at::Tensor Model::losses(const at::Tensor& ids, const at::Tensor& targets, ModelState& state,
                         const at::Tensor& starts) {
  return losses_of(run(ids, state, starts), targets);
}

Node Model::describe() const {
  auto options = options_;
  options.layers = stack_->describe();
  if (!options_.residual.is_null()) options.residual = stack_->options().residual;
  if (!options_.loop.is_null()) options.loop = stack_->options().loop;
  options.defaults = Node::map();  // every layer carries its own
  return write_options(options);
}

double Model::flops_per_token(int64_t context) const {
  return 2.0 * static_cast<double>(matrix_weights() + head_weight().numel()) + stack_->op_flops(context);
}

}  // namespace weft
