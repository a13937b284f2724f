#include "io/gguf/source.h"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "base/error.h"
#include "base/text.h"

namespace weft {
namespace {

using Sizes = std::vector<int64_t>;

std::string gguf_sizes(const Sizes& sizes) { return fmt::format("[{}]", fmt::join(sizes, ", ")); }

// Tools that rewrite GGUF files drop leading dimensions of 1.
Sizes without_leading_ones(Sizes sizes) {
  while (sizes.size() > 1 && sizes.front() == 1) sizes.erase(sizes.begin());
  return sizes;
}

at::Tensor index_tensor(const Sizes& list) {
  return at::from_blob(const_cast<int64_t*>(list.data()), {static_cast<int64_t>(list.size())}, at::kLong);
}

int64_t last_of(const Sizes& sizes) { return sizes.size() >= 2 ? sizes.back() : 1; }

// Rows of one GGUF tensor. A piece of one row each, when the tensor is a vector.
at::Tensor rows_of(const Piece& piece, const at::Tensor& tensor, int64_t width) {
  auto rows = (piece.transposed ? tensor.transpose(-2, -1) : tensor).reshape({-1, width});
  if (piece.rows.empty()) return rows;
  const auto count = static_cast<int64_t>(piece.rows.size());
  const bool run = std::adjacent_find(piece.rows.begin(), piece.rows.end(),
                                      [](auto a, auto b) { return b != a + 1; }) == piece.rows.end();
  return run ? rows.narrow(0, piece.rows.front(), count) : rows.index_select(0, index_tensor(piece.rows));
}

Sizes turned(Sizes sizes, bool transposed) {
  if (transposed) std::swap(sizes[sizes.size() - 1], sizes[sizes.size() - 2]);
  return sizes;
}

// The inverse of a permutation.
Sizes inverse_order(const Sizes& order) {
  Sizes inverse(order.size());
  for (size_t i = 0; i < order.size(); ++i) inverse[static_cast<size_t>(order[i])] = static_cast<int64_t>(i);
  return inverse;
}

at::Tensor value_read(const GgufLink& link, const at::Tensor& x) {
  switch (link.value) {
    case GgufLink::Value::plus:
      return x.sub(link.offset);
    case GgufLink::Value::negative_exp:
      return x.to(at::kDouble).neg().log().to(x.scalar_type());
    default:
      return x;
  }
}

at::Tensor value_written(const GgufLink& link, const at::Tensor& x) {
  switch (link.value) {
    case GgufLink::Value::plus:
      return x.to(at::kFloat).add(link.offset);
    case GgufLink::Value::negative_exp:
      return x.to(at::kDouble).exp().neg().to(at::kFloat);
    default:
      return x;
  }
}

class GgufTensorSource final : public TensorSource {
 public:
  GgufTensorSource(const GgufFile& file, const GgufNames& names) : file_(file) {
    std::set<std::string> used;
    for (const auto& link : names.links()) {
      invariant(links_.emplace(link.tensor, link).second, "the tensor {} is linked twice", link.tensor);
      for (const auto& piece : link.pieces) used.insert(piece.tensor);
    }
    const auto passed_over = [&](const std::string& name) {
      return std::any_of(names.passed_over().begin(), names.passed_over().end(),
                         [&](const auto& begin) { return name.starts_with(begin); });
    };
    for (const auto& [name, unused] : file.tensors())
      if (!used.count(name) && !passed_over(name))
        links_.emplace(name, GgufLink{.tensor = name, .pieces = {{name}}});
  }

  // Only those whose GGUF tensors are there: what is missing is reported by who needs it.
  std::vector<std::string> names() const override {
    std::vector<std::string> result;
    for (const auto& [name, unused] : links_)
      if (contains(name)) result.push_back(name);
    return result;
  }
  bool contains(const std::string& name) const override {
    const auto found = links_.find(name);
    return found != links_.end() &&
           std::all_of(found->second.pieces.begin(), found->second.pieces.end(),
                       [&](const Piece& piece) { return file_.contains(piece.tensor); });
  }
  std::vector<int64_t> shape(const std::string& name) const override { return view(name).sizes().vec(); }
  at::ScalarType dtype(const std::string& name) const override { return view(name).scalar_type(); }
  const std::string& path() const override { return file_.path(); }

  at::Tensor view(const std::string& name) const override {
    if (name == last_name_) return last_;
    const auto found = links_.find(name);
    require(found != links_.end(), "{}: there is no tensor '{}'", path(), name);
    last_ = assemble(found->second);
    last_name_ = name;
    return last_;
  }

 private:
  at::Tensor assemble(const GgufLink& link) const {
    const auto shape = link.shape.empty() ? shape_of_piece(link) : link.shape;
    const auto width = last_of(shape);
    std::vector<at::Tensor> blocks;
    for (size_t i = 0; i < link.pieces.size(); ++i) {
      const auto tensor = piece_tensor(link, i);
      require(tensor.numel() % width == 0, "{}: tensor '{}' is {}: no rows of {} for {}", path(),
              link.pieces[i].tensor, gguf_sizes(tensor.sizes().vec()), width, link.tensor);
      const auto& rows = link.pieces[i].rows;
      require(rows.empty() || *std::max_element(rows.begin(), rows.end()) < tensor.numel() / width,
              "{}: tensor '{}' is {}: too few rows for {}", path(), link.pieces[i].tensor,
              gguf_sizes(tensor.sizes().vec()), link.tensor);
      blocks.push_back(rows_of(link.pieces[i], tensor, width));
    }
    auto all = blocks.size() == 1 ? blocks[0] : at::cat(blocks, 0);
    if (!link.columns.empty()) all = all.index_select(1, index_tensor(link.columns));
    const auto numbers = std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
    require(all.numel() == numbers, "{}: tensor '{}' has {} numbers, {} needs {}", path(),
            link.pieces[0].tensor, all.numel(), link.tensor, gguf_sizes(shape));
    if (link.scale != 1) all = all.div(link.scale);
    return value_read(link, all.reshape(shape).contiguous());
  }

  // Of a link that does not state its shape and has one piece: that of the piece's rows.
  Sizes shape_of_piece(const GgufLink& link) const {
    invariant(link.pieces.size() == 1, "{} is made of several tensors: its shape must be stated",
              link.tensor);
    auto shape = turned(piece_tensor(link, 0).sizes().vec(), link.pieces[0].transposed);
    if (!link.pieces[0].rows.empty()) {
      while (shape.size() > 2) shape.erase(shape.begin());
      shape[0] = static_cast<int64_t>(link.pieces[0].rows.size());
    }
    return shape;
  }

  // The GGUF tensor of a piece, its sizes checked where the link states them.
  at::Tensor piece_tensor(const GgufLink& link, size_t i) const {
    const auto& piece = link.pieces[i];
    if (piece.tensor != last_gguf_name_) {
      last_gguf_ = file_.view(piece.tensor);
      last_gguf_name_ = piece.tensor;
    }
    if (piece.shape.empty()) return last_gguf_;
    const auto found = last_gguf_.sizes().vec();
    require(without_leading_ones(found) == without_leading_ones(piece.shape),
            "{}: tensor '{}' is {}, expected {}", path(), piece.tensor, gguf_sizes(found),
            gguf_sizes(piece.shape));
    return last_gguf_.reshape(piece.shape);
  }

  const GgufFile& file_;
  std::map<std::string, GgufLink> links_;
  mutable std::string last_name_, last_gguf_name_;
  mutable at::Tensor last_, last_gguf_;
};

// A GGUF tensor that is being written: its sizes and which rows of which checkpoint tensors it holds.
struct Assembly {
  Sizes shape;
  struct Part {
    const GgufLink* link;
    const Piece* piece;
    int64_t first;  // row of the link's tensor at which the piece begins
  };
  std::vector<Part> parts;
};

// Written in fp32 whatever the type of matrices: what llama.cpp computes elementwise.
bool stays_float(const std::string& name, const Sizes& shape) {
  if (shape.size() <= 1 || !name.ends_with(".weight")) return true;
  for (const char* part :
       {"_norm.", "ssm_conv1d", "shortconv.conv", "ffn_gate_inp", "time_mix_first", "time_mix_w1",
        "time_mix_w2", "time_mix_decay_w1", "time_mix_decay_w2", "time_mix_lerp_fused"})
    if (name.find(part) != std::string::npos) return true;
  return false;
}

GgmlType written_type(const std::string& name, const Sizes& shape, GgmlType wanted) {
  if (stays_float(name, shape)) return GgmlType::F32;
  return shape.back() % ggml_type_info(wanted).block == 0 ? wanted : GgmlType::F16;
}

using Checkpoint = std::map<std::string, at::Tensor>;

at::Tensor assemble_output(const Assembly& assembly, const Checkpoint& tensors) {
  const at::NoGradGuard no_grad;
  const auto& first = assembly.parts.front();
  const auto sizes = turned(assembly.shape, first.piece->transposed);
  at::Tensor target;
  for (const auto& part : assembly.parts) {
    const auto& tensor = tensors.at(part.link->tensor);
    auto rows = value_written(*part.link, tensor.detach().cpu());
    rows = rows.reshape({-1, last_of(tensor.sizes().vec())});
    if (part.link->scale != 1) rows = rows.mul(part.link->scale);
    if (!part.link->factors.empty())
      rows =
          rows.to(at::kDouble).mul(at::tensor(part.link->factors, at::kDouble).unsqueeze(1)).to(at::kFloat);
    if (!part.link->columns.empty())
      rows = rows.index_select(1, index_tensor(inverse_order(part.link->columns)));
    if (!target.defined()) target = at::zeros(sizes, rows.options());
    auto places = target.view({-1, rows.size(1)});
    const auto count =
        part.piece->rows.empty() ? places.size(0) : static_cast<int64_t>(part.piece->rows.size());
    const auto block = rows.narrow(0, part.first, count);
    if (part.piece->rows.empty())
      places.copy_(block);
    else
      places.index_copy_(0, index_tensor(part.piece->rows), block);
  }
  return first.piece->transposed ? target.transpose(-2, -1).contiguous() : target;
}

// Numbers of a piece: all of its tensor, or its rows.
int64_t piece_rows(const Piece& piece, const Sizes& shape, int64_t width) {
  if (!piece.rows.empty()) return static_cast<int64_t>(piece.rows.size());
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>()) / width;
}

}  // namespace

std::unique_ptr<TensorSource> gguf_tensor_source(const GgufFile& file, const GgufNames& names) {
  return std::make_unique<GgufTensorSource>(file, names);
}

std::vector<GgufOutput> gguf_outputs(const GgufNames& names,
                                     std::vector<std::pair<std::string, at::Tensor>> tensors, GgmlType type,
                                     const std::string& path) {
  const auto checkpoint = std::make_shared<Checkpoint>(tensors.begin(), tensors.end());
  const auto links = std::make_shared<std::vector<GgufLink>>(names.links());
  std::map<std::string, Assembly> made;
  std::vector<std::string> order;
  std::set<std::string> linked;
  for (const auto& link : *links) {
    const auto found = checkpoint->find(link.tensor);
    require(found != checkpoint->end(), "{}: tensor '{}' is missing", path, link.tensor);
    linked.insert(link.tensor);
    const auto sizes = found->second.sizes().vec();
    int64_t first = 0;
    for (const auto& piece : link.pieces) {
      auto& assembly = made[piece.tensor];
      if (assembly.parts.empty()) {
        order.push_back(piece.tensor);
        assembly.shape = piece.shape.empty() ? turned(sizes, piece.transposed) : piece.shape;
      }
      assembly.parts.push_back({&link, &piece, first});
      first += piece_rows(piece, assembly.shape, last_of(sizes));
    }
  }
  for (const auto& [name, unused] : *checkpoint)
    require(linked.count(name), "{}: GGUF has no name for the tensor '{}'", path, name);
  std::vector<GgufOutput> outputs;
  for (const auto& name : order) {
    auto assembly = made.at(name);
    const auto shape = assembly.shape;
    outputs.push_back(
        {name, shape, written_type(name, shape, type), [assembly = std::move(assembly), checkpoint, links] {
           return assemble_output(assembly, *checkpoint);
         }});
  }
  for (const auto& [name, value] : names.constants())
    outputs.push_back({name, value.sizes().vec(), GgmlType::F32, [value = value] { return value; }});
  return outputs;
}

}  // namespace weft
