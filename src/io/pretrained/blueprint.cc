#include "io/pretrained/blueprint.h"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "base/error.h"
#include "base/text.h"

namespace weft {
namespace {

// Far more than any model has; what a config may make us build before the file is looked at.
constexpr int64_t kMostLayers = 10'000;
constexpr size_t kMostPieces = 4'000'000;

std::string sizes_text(at::IntArrayRef sizes) { return fmt::format("[{}]", fmt::join(sizes, ", ")); }

std::string listed(std::vector<std::string> names) {
  const auto count = names.size();
  if (count > 8) names.resize(8);
  return join(names) + (count > 8 ? fmt::format(" and {} more", count - 8) : "");
}

int64_t row_width(const at::Tensor& parameter) { return parameter.dim() >= 2 ? parameter.size(-1) : 1; }

std::vector<int64_t> shape_of(const Piece& piece, const at::Tensor& parameter) {
  if (!piece.shape.empty()) return piece.shape;
  auto shape = parameter.sizes().vec();
  if (piece.transposed) std::swap(shape[shape.size() - 1], shape[shape.size() - 2]);
  return shape;
}

// A tensor of the file as rows, and back.
at::Tensor as_rows(const Piece& piece, const at::Tensor& tensor, int64_t width) {
  return (piece.transposed ? tensor.transpose(-2, -1) : tensor).reshape({-1, width});
}

at::Tensor index_of(const Piece& piece) {
  return at::from_blob(const_cast<int64_t*>(piece.rows.data()), {static_cast<int64_t>(piece.rows.size())},
                       at::kLong);
}

}  // namespace

std::vector<int64_t> row_range(int64_t begin, int64_t end) {
  std::vector<int64_t> rows(static_cast<size_t>(end - begin));
  std::iota(rows.begin(), rows.end(), begin);
  return rows;
}

std::string Blueprint::add_layer(Node layer) {
  require(layers() < kMostLayers, "{}: more than {} layers", source, kMostLayers);
  layers_.push_back(std::move(layer));
  return fmt::format("stack.layers.{}.", layers() - 1);
}

void Blueprint::take(const std::string& parameter, const std::string& tensor) {
  take(parameter, Piece{.tensor = tensor});
}
void Blueprint::take(const std::string& parameter, Piece piece) {
  take(parameter, std::vector<Piece>{std::move(piece)});
}
void Blueprint::take(const std::string& parameter, std::vector<Piece> pieces) {
  pieces_ += pieces.size();
  require(pieces_ <= kMostPieces, "{}: more than {} tensors", source, kMostPieces);
  invariant(parameters_.emplace(parameter, std::move(pieces)).second, "parameter {} is described twice",
            parameter);
}

void Blueprint::constant(const std::string& tensor, const at::Tensor& value) { constants_[tensor] = value; }

ModelOptions Blueprint::options() const {
  auto options = model;
  options.layers = layers_;
  return options;
}

std::vector<std::string> Blueprint::fill(Model& model, const TensorSource& file) const {
  const at::NoGradGuard no_grad;
  std::set<std::string> used, missing;
  const auto parameters = model.parameters();
  for (const auto& [name, parameter] : parameters) {
    const auto found = parameters_.find(name);
    invariant(found != parameters_.end(), "no tensor is given for the parameter {}", name);
    for (const auto& piece : found->second) {
      used.insert(piece.tensor);
      if (!file.contains(piece.tensor)) missing.insert(piece.tensor);
    }
  }
  invariant(parameters.size() == parameters_.size(),
            "tensors are given for {} parameters, the model has {}: {}", parameters_.size(),
            parameters.size(), [&] {
              std::vector<std::string> extra;
              std::set<std::string> known;
              for (const auto& [name, parameter] : parameters) known.insert(name);
              for (const auto& [name, pieces] : parameters_)
                if (!known.count(name)) extra.push_back(name);
              return listed(extra);
            }());
  require(missing.empty(), "{}: {} tensor{} missing: {}", file.path(), missing.size(),
          missing.size() == 1 ? " is" : "s are", listed({missing.begin(), missing.end()}));

  for (const auto& [name, parameter] : parameters) {
    const auto& pieces = parameters_.at(name);
    auto& value = parameter->value;
    const auto width = row_width(value);
    std::vector<at::Tensor> blocks;
    for (const auto& piece : pieces) {
      const auto expected = shape_of(piece, value);
      const auto found = file.shape(piece.tensor);
      require(found == expected, "{}: tensor '{}' is {}, expected {}", file.path(), piece.tensor,
              sizes_text(found), sizes_text(expected));
      require(at::isFloatingType(file.dtype(piece.tensor)), "{}: tensor '{}' is {}, expected a float type",
              file.path(), piece.tensor, c10::toString(file.dtype(piece.tensor)));
      auto rows = as_rows(piece, file.view(piece.tensor), width);
      if (!piece.rows.empty()) rows = rows.index_select(0, index_of(piece));
      blocks.push_back(std::move(rows));
    }
    auto filled = blocks.size() == 1 ? blocks[0] : at::cat(blocks, 0);
    require(filled.numel() == value.numel(),
            "{}: the tensors of '{}' ({}) have {} numbers, the config says {}", file.path(), name,
            pieces[0].tensor, filled.numel(), value.numel());
    value = filled.reshape(value.sizes()).contiguous();
  }

  std::vector<std::string> unused;
  for (const auto& name : file.names()) {
    const bool expected = used.count(name) || constants_.count(name) ||
                          std::any_of(passed_over_.begin(), passed_over_.end(),
                                      [&](const auto& prefix) { return name.starts_with(prefix); });
    if (!expected) unused.push_back(name);
  }
  return unused;
}

std::vector<std::pair<std::string, at::Tensor>> Blueprint::tensors(const Model& model) const {
  const at::NoGradGuard no_grad;
  std::map<std::string, at::Tensor> made = constants_;
  for (const auto& [name, parameter] : model.parameters()) {
    const auto& value = parameter->value;
    const auto width = row_width(value);
    const auto all_rows = value.detach().cpu().reshape({-1, width});
    int64_t next = 0;
    for (const auto& piece : parameters_.at(name)) {
      auto shape = shape_of(piece, value);
      if (piece.transposed) std::swap(shape[shape.size() - 1], shape[shape.size() - 2]);
      auto& target = made[piece.tensor];  // in the orientation of the rows until all are written
      if (!target.defined()) target = at::zeros(shape, all_rows.options());
      auto rows = target.view({-1, width});
      const auto count = piece.rows.empty() ? rows.size(0) : static_cast<int64_t>(piece.rows.size());
      const auto block = all_rows.narrow(0, next, count);
      if (piece.rows.empty())
        rows.copy_(block);
      else
        rows.index_copy_(0, index_of(piece), block);
      next += count;
    }
  }
  for (const auto& [name, pieces] : parameters_)
    for (const auto& piece : pieces)
      if (auto& tensor = made[piece.tensor]; piece.transposed && tensor.is_contiguous())
        tensor = tensor.transpose(-2, -1);
  std::vector<std::pair<std::string, at::Tensor>> result;
  for (auto& [name, tensor] : made) result.emplace_back(name, tensor.contiguous());
  return result;
}

Node node_of(int64_t value) { return Node::scalar(fmt::format("{}", value)); }
Node node_of(double value) { return Node::scalar(fmt::format("{}", value)); }
Node node_of(bool value) { return Node::scalar(value ? "true" : "false"); }
Node node_of(const std::string& value) { return Node::scalar(value); }
Node node_of(const char* value) { return Node::scalar(value); }

}  // namespace weft
