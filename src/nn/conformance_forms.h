// The forms that the conformance suite compares; one function each. See design: one mixer, many forms, proven
// equal.
#pragma once

#include <vector>

#include "nn/conformance.h"

namespace weft::conformance {

struct Subject {
  SequenceMixer& reference;  // fp64, on the CPU
  SequenceMixer& mixer;      // under test, same parameters
  at::ScalarType dtype;
  at::Device device;
  double bound;
  int64_t width;
  uint64_t seed;
};

struct Form {
  const char* name;
  bool (*applies)(const Subject&);
  // Sets error and detail to the worst case met; throws on anything that must not happen.
  void (*run)(Subject&, CheckResult&);
};

const std::vector<Form>& forms();

}  // namespace weft::conformance
