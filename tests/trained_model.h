// A tiny model that all tests of the program share: trained once, when the first test asks.
#pragma once

#include <string>

#include "base/scratch_folder.h"
#include "program.h"

namespace weft {

// A recipe of a byte model: one delta-rule layer that exports nothing, one attention layer; `steps` as few as
// wanted.
std::string tiny_recipe(int64_t steps);

struct TrainedModel {
  TrainedModel();
  ScratchFolder folder;
  std::string recipe, text, run;  // paths
  ProgramResult result;           // of `weft train`
};
const TrainedModel& trained_model();

}  // namespace weft
