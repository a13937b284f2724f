// What this machine can compute on, and what this build of weft is: for `weft devices`, `weft version`, bug
// reports.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace weft {

struct Device {
  std::string kind;  // as torch calls it, and as recipes do: "cpu", "cuda:0"
  std::string name;  // "Intel(R) Xeon(R) Platinum 8481C"
  int64_t memory_bytes = 0;
  std::string details;  // CPU: cores, threads, kernels; GPU: compute capability, multiprocessors, L2
};

// The CPU, then every GPU that can be used. Loads the CUDA library if that was not done yet.
std::vector<Device> devices();

// The devices as a table, and one line on the CUDA library; ends in a newline.
std::string devices_report();

// weft, build type, compiler, torch and where it was found, CUDA library; one line each; ends in a newline.
std::string version_report();

}  // namespace weft
