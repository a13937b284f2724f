// What the machine can do, measured in the same run as everything that is compared with it.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>

#include "bench/timing.h"

namespace weft::bench {

// The two rates that bound every op.
struct Rates {
  double copy =
      0;  // bytes read plus bytes written a second, of a copy far larger than the caches, all threads
  double flops = 0;  // a second, of a square matrix product, all threads
};

// What an op has to do at least: bytes it touches, each once, and operations.
struct Work {
  double bytes = 0, flops = 0;
};

// The larger of the time for moving the bytes and that for the operations, seconds; 0 for no work.
double floor_s(const Work& work, const Rates& rates);

struct Machine {
  std::string name;     // "AMD EPYC ..., 24 GiB; 2 cores, 2 threads, kernels avx512, avx2, scalar"
  std::string load;     // the three load averages when it was looked at; "" where they are unknown
  std::string product;  // what the rate of operations was measured with: "fp32 2048"
  Rates rates;
};

// Takes 2 to 4 seconds. The product is of `dtype`, the best of several, as is the copy.
Machine look_at_machine(at::Device device, at::ScalarType dtype);

// Environment variables that set OpenMP, whose threads the products and other operations of torch use, as
// "OMP_WAIT_POLICY=passive"; "defaults" when there are none. Threads that wait by looking (libgomp's default when there
// is a core for each) take the cores for milliseconds from whoever comes next.
std::string openmp_settings();

// Waits until the device has done all it was asked to; empty for the CPU.
std::function<void()> waiter(at::Device device);

// Seconds that a GPU needs for `calls` calls, between two events of the current stream. The device is kept busy until the
// calls are queued, so that the time is its own and not that of launching. On the CPU the clock's time.
Sampler device_sampler(std::function<void()> function, at::Device device);

// "fp32", "bf16", "fp16", "fp64"
std::string dtype_name(at::ScalarType dtype);

}  // namespace weft::bench
