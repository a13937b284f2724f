// For tests of this family: on the CPU and, where there is one, a GPU.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "ops/kernel_choice.h"
#include "ops/rnn/rnn.h"

namespace weft::ops {

// Calls test(device) with the best kernel of every device.
template <class Test>
void on_each_device(const Test& test) {
  std::vector<c10::DeviceType> done;
  for (const Kernel kernel : runnable_kernels()) {
    const auto device = device_of(kernel);
    if (std::find(done.begin(), done.end(), device) != done.end()) continue;
    done.push_back(device);
    SCOPED_TRACE(kernel_name(kernel));
    const ForceKernel force(kernel);
    test(device);
  }
}

inline Rnn moved(Rnn in, c10::DeviceType device) {
  for (auto* x : {&in.wx, &in.recurrent, &in.bias, &in.parameters, &in.initial_state, &in.starts})
    if (x->defined()) *x = x->to(device);
  return in;
}

}  // namespace weft::ops
