// How long after its start a new process has the first result of an op: loading of libraries and whatever the op does
// only once, but not the making of inputs.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "bench/op_case.h"

namespace weft::bench {

struct FirstCall {
  std::string pass;     // "fwd", then "f+b" in the same process; or "step"
  double start_s = 0;   // from the start of the process to the result, without the inputs
  double call_s = 0;    // of the call alone
  double inputs_s = 0;  // of making the inputs of this pass and those before it
};

// In the new process: runs the op, forward and then with its backward, and says a line `result PASS CALL_SECONDS
// INPUTS_SECONDS` after each. To make the case took `case_s` seconds, which count as inputs.
void call_once(const OpCase& subject, double case_s, const std::function<void(std::string_view)>& say);

// Runs `command` with sh and reads such lines to its end. InputError when it fails or says something else.
std::vector<FirstCall> first_calls(const std::string& command);

}  // namespace weft::bench
