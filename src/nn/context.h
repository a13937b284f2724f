// Everything about a call that is not the tokens' own features. New needs (a mask over modalities, a rank in
// a sequence-parallel group, a second axis of positions) add a field here and change no signature.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>

namespace weft {

// What one layer hands to others below it: a memory read-out, or keys and values.
struct Strand {
  std::map<std::string, at::Tensor> tensors;
  // true: every tensor is [B, T, ...] with the T tokens of this call. false: they cover all tokens so far
  // (keys, values, positions, segments), as a cache does.
  bool per_token = true;
  const at::Tensor& at(const std::string& name) const;
  const at::Tensor& only() const;  // of a strand of one tensor; InputError for others
};
using Strands = std::map<std::string, Strand>;

struct Context {
  at::Tensor positions;  // [B, T] int64: place of each token in its document, from 0
  // Packed documents. Both undefined when no document begins in this call, except at position 0 of a fresh
  // state.
  at::Tensor starts;    // [B, T] bool: a document begins here; state from before is dropped
  at::Tensor segments;  // [B, T] int64: 0 for the document that the state continues, then 1, 2, ...
  // false: the tokens of this call see each other in both directions where they are mixed by attention (a
  // prefix); what is in the state stays visible to all. Recurrent mixers go left to right all the same.
  bool causal = true;
  // Type of activations inside mixers; the residual stream may be wider. Undefined: the type of x.
  at::ScalarType dtype = at::ScalarType::Undefined;
  bool training = false;  // dropout and the like
  bool keep_state =
      true;         // false: the caller drops the state after the call; a mixer need not bring it up to date
  Strands imports;  // by the mixer's port name
  Strands* exports = nullptr;  // ports that are wanted; the mixer fills those it finds

  // For B rows whose next tokens stand at `position` [B] int64; starts may be undefined.
  static Context at_positions(const at::Tensor& position, int64_t tokens, const at::Tensor& starts = {});
  // Tokens [begin, end) of this call; per-token imports are cut too, exports are not passed on.
  Context slice(int64_t begin, int64_t end) const;
  // Rows of the batch.
  Context select(const at::Tensor& rows) const;
  // The same tokens right to left, as if the document ran that way. Positions are mirrored inside this call's
  // segments.
  Context reversed() const;
  bool wants(const std::string& port) const { return exports && exports->count(port) > 0; }
  const Strand& import(const std::string& port) const;  // InputError when the layer was given none
};

}  // namespace weft
