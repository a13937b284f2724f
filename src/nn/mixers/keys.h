// Keys and values with the positions they stand at: what attention keeps, and what it hands to other layers.
#pragma once

#include <initializer_list>

#include "nn/context.h"
#include "nn/state.h"

namespace weft {

struct Keys {
  at::Tensor k, v;       // [B, S, G, K], [B, S, G, V]
  at::Tensor positions;  // [B, S] int64, -1: empty
  at::Tensor segments;   // [B, S] int64; undefined: one segment

  static Keys from(const State& state) { return {state.at("k"), state.at("v"), state.at("slots"), {}}; }
  Strand strand() const;
  static Keys from(const Strand& strand);
};

// Cached keys, then those of this call. Cached ones belong to segment 0.
Keys join_keys(const Keys& cached, const Keys& fresh);
// The segments alone, [B, L + T], of `cached` columns [B, L] and then those of this call; undefined when it has none.
at::Tensor join_segments(const at::Tensor& cached, const Keys& fresh);

// Cuts a growing cache, the entries named and "slots", back to `before` columns plus the first n [B] of the later ones,
// row by row.
void keep_keys(State& state, int64_t before, const at::Tensor& n,
               std::initializer_list<const char*> entries = {"k", "v"});

// Empties the slots of documents that ended inside a call that left its keys in the cache; they are never seen again.
// `segments` [B, L] of all columns.
void forget_finished(State& state, const at::Tensor& segments, const Context& context,
                     std::initializer_list<const char*> entries = {"k", "v"});

}  // namespace weft
