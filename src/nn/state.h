// What a mixer carries from one call to the next: named tensors, batch first.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <string_view>

namespace weft {

// A value: copies are cheap and independent (tensors are shared until one side writes). Write only through
// `set`, `writable` and `append`; never change a tensor got from `at` in place. A tensor of a growing entry
// is valid until the next append or keep on the same state.
class State {
 public:
  bool has(std::string_view name) const;
  const at::Tensor& at(std::string_view name) const;  // Bug when absent
  void set(std::string_view name, at::Tensor value);
  // The tensor for writing in place, for decoding without allocation: copied first when another state shares
  // it.
  at::Tensor& writable(std::string_view name);
  // Entries that grow with the number of tokens (key and value caches): adds `more` along dimension 1. Room
  // is kept for later appends, so that one more token costs one more token. Under autograd it concatenates.
  void append(std::string_view name, const at::Tensor& more);
  // Keeps entries [begin, end) of dimension 1 of a growing entry.
  void keep(std::string_view name, int64_t begin, int64_t end);

  // States of inner mixers.
  State& child(const std::string& name) { return children_[name]; }
  const std::map<std::string, State, std::less<>>& children() const { return children_; }

  bool empty() const;
  int64_t bytes() const;   // of all tensors as they stand, without room kept for later
  State detached() const;  // without autograd history

  // Rows of the batch, in any order and number: how beams and proposals fork.
  State select(const at::Tensor& rows) const;
  // Replaces rows by those of `from` (one for each index). Entries that grow may differ in length: the
  // shorter are padded, `slots` entries (cache positions) with -1.
  void assign(const at::Tensor& rows, const State& from);

  // A copy whose growing entries have `columns` columns from the start, so that nothing moves while tokens come one by
  // one: those not used yet hold -1 (integers, as `slots`) or 0, and `append` writes its token into column
  // `cursor` [1] int64, which the caller moves on. InputError unless all growing entries have the same length.
  State with_columns(int64_t columns, const at::Tensor& cursor) const;
  // The inverse: a copy that grows again, with the first `used` columns.
  State growing(int64_t used) const;
  // Columns of growing entries; -1 when there are none.
  int64_t columns() const;

  // All tensors by path ("layer0/k"), for files.
  std::map<std::string, at::Tensor> tensors() const;
  // The inverse: a state with this one's structure and those tensors. InputError names a missing, unknown or
  // misshapen tensor (dimension 1 of growing entries is free).
  State with(const std::map<std::string, at::Tensor>& tensors) const;

 private:
  struct Entry {
    at::Tensor value;   // what readers see
    at::Tensor buffer;  // for growing entries with room: value is a prefix of it along dimension 1
    bool grows = false;
    at::Tensor cursor = {};  // of a growing entry with a fixed number of columns: where the next token goes
  };
  Entry& entry(std::string_view name);
  template <class Change>
  State changed(const Change& change) const;  // a copy with every entry replaced by change(name, entry)
  void collect(const std::string& prefix, std::map<std::string, at::Tensor>& out) const;
  State with(const std::map<std::string, at::Tensor>& tensors, const std::string& prefix, size_t& used) const;

  std::map<std::string, Entry, std::less<>> entries_;
  std::map<std::string, State, std::less<>> children_;
};

}  // namespace weft
