// What a model is made of, as text: the drawn stack and a table of what each layer costs.
#pragma once

#include <string>

#include "nn/model.h"

namespace weft::cli {

struct ReportOptions {
  int64_t context = 1024;             // tokens before the one that flops and state bytes are given for
  at::ScalarType dtype = at::kFloat;  // of activations: decides state bytes and kernels
  at::Device device = at::kCPU;
};

// The resolved layers from top to bottom: mixer and options that differ from their defaults, what is exported
// and who imports it. Equal neighbours are drawn once.
std::string draw_stack(const Model& model);

// For each group of equal layers, and in all: parameters, flops a token, state bytes, kernels; ends in a
// newline.
std::string cost_report(const Model& model, const ReportOptions& options);

}  // namespace weft::cli
