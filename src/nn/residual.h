// The residual stream, and how the branches of layers read from it and write to it. The plain stream is x + f(norm(x));
// others carry several streams, scale both sides, or let each branch choose among what earlier blocks wrote. A kind is
// one file in residuals/, chosen by a model's `residual: {KIND: options}`.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/fields.h"
#include "nn/module.h"

namespace weft {

// What runs from layer to layer; every tensor belongs to the tokens of one call.
struct Stream {
  at::Tensor x;         // [B, T, W], the running stream
  at::Tensor pending;   // [B, T, D], of a plain stream: a branch's part not added yet; undefined: none
  at::Tensor blocks;    // [B, T, N, D] what earlier blocks wrote, normed, fp32 or fp64; undefined: none
  at::Tensor messages;  // [B, T, M, D] what the previous pass of a loop left, normed; undefined: none

  void settle();  // adds what is pending
  // All four, and back: for recomputation.
  std::vector<at::Tensor> tensors() const { return {x, pending, blocks, messages}; }
  static Stream of(const std::vector<at::Tensor>& tensors);
};

// What a branch reads: its inputs [B, T, D], normed; and what `write` needs of the reading.
struct Reading {
  std::vector<at::Tensor> inputs;
  at::Tensor gate;
};

// One branch's connection to the stream.
class Connection : public Module {
 public:
  // One input for each norm, or more where the kind makes more of them; a single norm then serves all. The stream may have
  // something pending, of a plain layer before: settle() first, or add it.
  virtual Reading read(Stream& stream, const std::vector<Norm>& norms) = 0;
  // y [B, T, D] in any float type; the stream keeps its own.
  virtual void write(Stream& stream, const Reading& reading, const at::Tensor& y) = 0;
};

// Where a branch stands.
struct BranchSite {
  int64_t width = 0;  // D
  int64_t layer = 0;
  bool first_in_layer = true;
  bool looped = false;  // of a layer in the loop
  int64_t inputs = 1;   // that the branch takes
  bool separate_inputs =
      false;  // each of them has a norm, and where the stream is read by queries a query, of its own
  double norm_eps = 1e-5;
  double skip_scale = 1.0;  // multiplies the stream before the branch's part is added (plain streams)
};

// A kind of stream: its ends, as parameters of the stack ("residual."), and the maker of connections.
class Residual : public Module {
 public:
  virtual std::unique_ptr<Connection> connect(const BranchSite& site) const = 0;
  virtual int64_t width() const = 0;            // W, of Stream::x
  virtual bool plain() const { return false; }  // one stream that parts are added to, nothing else
  // x [B, T, D] -> the stream before the first layer.
  virtual Stream begin(const at::Tensor& x);
  // The stream behind the last layer, where something may be pending -> [B, T, D].
  virtual at::Tensor end(Stream& stream);
  // What the next pass of a loop starts from: `before` the loop, `after` the pass; either may have something pending.
  // Without an own rule passes follow one another.
  virtual Stream next_pass(const Stream& before, Stream after) const;
};

// x + f(norm(x)), the sum and the next norm in one step where they meet.
std::unique_ptr<Connection> plain_connection(double skip_scale);

struct ResidualEntry {
  std::string name, summary;
  std::vector<FieldInfo> fields;
  std::function<std::unique_ptr<Residual>(const Node& options, int64_t width)> make;
  std::function<Node(const Node& options)> resolve;
};

void register_residual(ResidualEntry entry);
std::vector<std::string> residual_names();  // sorted
// `node` is {KIND: {option: value, ...}}, or null for the plain stream. InputError for an unknown kind.
const ResidualEntry& find_residual(const Node& node);
std::unique_ptr<Residual> make_residual(const Node& node, int64_t width);
Node resolve_residual(const Node& node);

// const RegisterResidual<Scaled> register_scaled{"scaled", "one sentence"}; a kind R has R::Options with fields() and
// R(options, width).
template <class R>
struct RegisterResidual {
  RegisterResidual(const char* name, const char* summary) {
    register_residual(
        {.name = name,
         .summary = summary,
         .fields = list_options<typename R::Options>(),
         .make = [name = std::string(name)](const Node& options, int64_t width) -> std::unique_ptr<Residual> {
           return std::make_unique<R>(read_options<typename R::Options>(options, name), width);
         },
         .resolve =
             [name = std::string(name)](const Node& options) {
               return write_options(read_options<typename R::Options>(options, name));
             }});
  }
};

}  // namespace weft
