// What an architecture makes of a config: a weft model, and where each of its parameters stands in the checkpoint.
//
// A parameter is seen as a matrix of rows: its last dimension is a row (one number for vectors), all others count rows.
// It is the rows of one or several tensors of the file, one after another. That covers renaming, fusing and splitting
// (q, k, v), stacks of experts, interleaved layouts and transposes; it moves numbers and never changes one, so it can be
// turned round to write the checkpoint again, bit for bit.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/config.h"
#include "io/pretrained/tensor_source.h"
#include "nn/model.h"

namespace weft {

// Rows of one tensor of the file.
struct Piece {
  std::string tensor;
  std::vector<int64_t> shape = {};  // in the file; {}: that of the parameter
  std::vector<int64_t> rows = {};   // which rows, in the parameter's order; {}: all
  bool transposed = false;          // the file holds the last two dimensions exchanged (GPT-2's Conv1D)
};

// Row numbers begin, begin + 1, ... end - 1.
std::vector<int64_t> row_range(int64_t begin, int64_t end);

class Blueprint {
 public:
  std::string source = "config";  // for messages: the file that describes it
  ModelOptions model;             // without layers; those are collected by add_layer

  // A layer as in model.yaml: {mixer: ..., ffn: ...}. Returns the prefix of its parameters, "stack.layers.3."
  std::string add_layer(Node layer);
  int64_t layers() const { return static_cast<int64_t>(layers_.items().size()); }

  // The parameter (dotted name in weft) is this tensor of the file.
  void take(const std::string& parameter, const std::string& tensor);
  void take(const std::string& parameter, Piece piece);
  // The parameter is made of these pieces, in this order.
  void take(const std::string& parameter, std::vector<Piece> pieces);
  // A tensor that belongs in the file but is no parameter (a table that follows from the config); written as given,
  // not read.
  void constant(const std::string& tensor, const at::Tensor& value);
  // Tensors that may be in the file and are passed over without a note, by prefix.
  void pass_over(const std::string& prefix) { passed_over_.push_back(prefix); }

  // The model that this describes, its parameters not yet filled.
  ModelOptions options() const;
  // Fills the parameters of a model made from options(). Tensors are taken over as they are where a parameter is a
  // whole tensor (mapped, if the file is), else gathered. InputError names every missing tensor and each that has
  // another shape. Returns the tensors of the file that are not used and not passed over.
  std::vector<std::string> fill(Model& model, const TensorSource& file) const;
  // The inverse: every tensor of the checkpoint, from the parameters of a model made from options().
  std::vector<std::pair<std::string, at::Tensor>> tensors(const Model& model) const;

 private:
  Node layers_ = Node::list();
  std::map<std::string, std::vector<Piece>> parameters_;
  size_t pieces_ = 0;
  std::map<std::string, at::Tensor> constants_;
  std::vector<std::string> passed_over_;
};

// Short forms for building layers: a map node from pairs of key and value.
Node node_of(int64_t value);
Node node_of(double value);
Node node_of(bool value);
Node node_of(const std::string& value);
Node node_of(const char* value);
inline Node node_of(int value) { return node_of(static_cast<int64_t>(value)); }
inline Node node_of(Node value) { return value; }
// fields("mixer", "attention", "heads", 4, "ffn", fields("swiglu", fields("hidden", 48)))
inline void set_fields(Node&) {}
template <class Value, class... More>
void set_fields(Node& node, const char* key, Value value, More... more) {
  node.set_child(key, node_of(std::move(value)));
  set_fields(node, std::move(more)...);
}
template <class... Pairs>
Node fields(Pairs... pairs) {
  Node node = Node::map();
  set_fields(node, std::move(pairs)...);
  return node;
}

}  // namespace weft
