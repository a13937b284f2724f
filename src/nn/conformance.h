// The conformance suite: every registered mixer through every form of the contract, against its fp64 whole
// form. Tests run it on all mixers of weft; `weft check` runs it on any of them and on plug-ins.
#pragma once

#include <string>
#include <vector>

#include "nn/mixer.h"

namespace weft {

// One line of mixer_cases.yaml: a mixer with options, {mixer: gla, heads: 2, head_dim: 8, bf16: 0.02}, or a
// whole pattern for mixers that need others, {covers: gmu, layers: [...]}, also over another residual stream and in a
// loop, {covers: attention, layers: [...], residual: {scaled: {}}, loop: {...}}. Layers of a pattern may import `tokens`.
struct CheckCase {
  std::string covers;   // the mixer under test
  Node node;            // {mixer: ...} or a list of layers
  Node residual, loop;  // of a list of layers, as in a model; null: plain, none
  int64_t width = 16;
  double bf16 = 0.02;  // bound in bf16, relative to the largest output
  double fp32 = 1e-4;  // the same in fp32
};

// Reads a list of cases; InputError with file and line.
std::vector<CheckCase> read_check_cases(const Node& list);
// The cases of weft's own mixers.
std::vector<CheckCase> builtin_check_cases();

struct CheckResult {
  enum class Verdict { pass, fail, not_applicable };
  std::string form;    // "step = whole, fp64"
  std::string detail;  // the worst shape, or why the form does not apply
  double error = 0;    // largest |difference| / largest |expected|
  double bound = 0;
  Verdict verdict = Verdict::pass;
};

// Runs all forms. `device` is where the fast kernels run; the fp64 whole form always runs on the CPU.
std::vector<CheckResult> check_mixer(const CheckCase& subject, uint64_t seed, at::Device device = at::kCPU);

}  // namespace weft
