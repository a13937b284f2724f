// One op at one shape: what runs, what it must agree with, what it is compared with.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <vector>

namespace weft::bench {

using Tensors = std::vector<at::Tensor>;
using TensorFunction = std::function<Tensors(const Tensors&)>;  // inputs to outputs

struct OpCase {
  std::string family;        // "attention": a table of the report; op_cases() fills it
  std::string op;            // "linear_attention gdn"
  std::string shape;         // "1x1024 8h 64x64"
  std::string peer;          // what the peer is, in words; empty: none in this process
  std::string external;      // the name of the same work in peers of their own process; empty: none
  TensorFunction weft;       // the op
  TensorFunction reference;  // its definition, called with fp64 inputs
  TensorFunction peer_call;  // the same in the tensor operations that a PyTorch user has
  // Random inputs; floating ones get gradients. Those of the check are smaller, with lengths that fit no
  // tile.
  std::function<Tensors()> inputs, check_inputs;
  double bound = 1e-5;           // of outputs, relative to the largest entry; as the op's header states
  double gradient_bound = 5e-5;  // of gradients
  double flops = 0;              // of one forward
  double backward_factor = 2;    // operations of the backward, in forwards
  bool step = false;             // a decoding step in place: forward only; the op may overwrite its inputs
};

struct OpFamily {
  const char* name;
  std::vector<OpCase> (*cases)(at::ScalarType dtype, at::Device device);
};

// Those of the CPU or of a GPU, whose shapes differ. Attention is last: to make its cases takes some tenths of a second,
// for the masks of its peers.
std::vector<OpFamily> op_families(at::Device device);

// All ops at the shapes that are timed, inputs in `dtype` on `device`. Order: by family.
std::vector<OpCase> op_cases(at::ScalarType dtype, at::Device device);

// Families, each in its own file.
std::vector<OpCase> linear_attention_op_cases(at::ScalarType dtype, at::Device device);
std::vector<OpCase> recurrence_op_cases(at::ScalarType dtype, at::Device device);  // scan, selective_scan
std::vector<OpCase> rnn_op_cases(at::ScalarType dtype, at::Device device);
std::vector<OpCase> attention_op_cases(at::ScalarType dtype, at::Device device);
std::vector<OpCase> rowwise_op_cases(at::ScalarType dtype, at::Device device);  // conv, norm, rope, loss

// Shapes that fill a GPU.
std::vector<OpCase> gpu_linear_attention_op_cases(at::ScalarType dtype, at::Device device);
// Scans, convolution, LSTM.
std::vector<OpCase> gpu_recurrence_op_cases(at::ScalarType dtype, at::Device device);
std::vector<OpCase> gpu_attention_op_cases(at::ScalarType dtype, at::Device device);
std::vector<OpCase> gpu_decode_op_cases(at::ScalarType dtype, at::Device device);  // one query a sequence

}  // namespace weft::bench
