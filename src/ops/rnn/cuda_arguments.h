// What the CUDA wrappers of rnn and rnn_parallel tell kernels about tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "ops/cuda_tensors.h"
#include "ops/rnn/kernel_cuda.h"
#include "ops/rnn/rnn.h"

namespace weft::ops {

// None for cells of the user.
inline std::optional<kernels::RnnCell> cuda_cell(const Cell& cell) {
  using kernels::RnnCell;
  if (cell.name == "elman") return RnnCell::elman;
  if (cell.name == "lstm") return RnnCell::lstm;
  if (cell.name == "gru") return RnnCell::gru;
  if (cell.name == "slstm") return RnnCell::slstm;
  if (cell.name == "para_gru") return RnnCell::para_gru;
  if (cell.name == "para_lstm") return RnnCell::para_lstm;
  return std::nullopt;
}

template <class T>
const T* data(const at::Tensor& x) {
  return x.defined() ? x.const_data_ptr<T>() : nullptr;
}
template <class T>
T* mutable_data(const at::Tensor& x) {
  return x.defined() ? x.mutable_data_ptr<T>() : nullptr;
}

}  // namespace weft::ops
