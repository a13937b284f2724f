#include "infer/step_graph.h"

#include <ATen/Functions.h>

#include "base/error.h"
#include "ops/shape.h"

namespace weft {
namespace {

std::map<std::string, const void*> places(const State& state) {
  std::map<std::string, const void*> result;
  for (const auto& [path, tensor] : state.tensors()) result[path] = tensor.const_data_ptr();
  return result;
}

std::map<std::string, std::vector<int64_t>> shapes(const State& state) {
  std::map<std::string, std::vector<int64_t>> result;
  for (const auto& [path, tensor] : state.tensors()) result[path] = tensor.sizes().vec();
  return result;
}

}  // namespace

StepGraph::StepGraph(Model& model, const ModelState& state, int64_t columns)
    : used_(state.layers.columns()), columns_(columns) {
  const auto options = at::TensorOptions(at::kLong).device(model.device());
  ids_ = at::zeros({state.position.size(0), 1}, options);
  cursor_ = at::full({1}, std::max<int64_t>(used_, 0), options);
  position_ = state.position.to(model.device(), /*non_blocking=*/false, /*copy=*/true);
  const auto fresh = [&] { return ModelState{state.layers.with_columns(columns, cursor_), position_}; };

  // Once for real, on a copy: sets up what libraries set up at their first call, and shows which entries a step replaces
  // instead of writing in place.
  auto trial = fresh();
  const auto before = places(trial.layers);
  const auto shape = shapes(trial.layers);
  model.logits(model.step(ids_, trial));
  std::vector<std::string> replaced;
  for (const auto& [path, tensor] : trial.layers.tensors()) {
    supported(shape.count(path) > 0 && tensor.sizes().vec() == shape.at(path),
              "a step changes the shape of the state's {}, to {}", path, shape_text(tensor));
    if (tensor.const_data_ptr() != before.at(path)) replaced.push_back(path);
  }
  state_ = fresh();
  record(model, replaced);
}

void StepGraph::record(Model& model, const std::vector<std::string>& replaced) {
  {
    // Only these are held: an entry that someone else holds too would be copied before it is written.
    const auto all = state_.layers.tensors();
    for (const auto& path : replaced) kept_[path] = all.at(path);
  }
  graph_ = std::make_unique<CudaGraph>(model.device(), [&] {
    logits_ = model.logits(model.step(ids_, state_));
    const auto after = state_.layers.tensors();
    for (auto& [path, tensor] : kept_) tensor.copy_(after.at(path));
    position_.copy_(state_.position);
    cursor_.add_(1);
  });
}

at::Tensor StepGraph::step(const at::Tensor& ids) {
  invariant(!full(), "a step behind {} tokens, of which its graph holds {}", used_, columns_);
  ids_.copy_(ids);
  graph_->replay();
  if (used_ >= 0) ++used_;
  return logits_;
}

ModelState StepGraph::state() const {
  auto tensors = state_.layers.tensors();
  for (const auto& [path, tensor] : kept_) tensors[path] = tensor;
  return {state_.layers.with(tensors).growing(std::max<int64_t>(used_, 0)), position_.to(at::kCPU)};
}

}  // namespace weft
