// Tasks over examples that are all there: which of them the training split visits when.
#pragma once

#include <ATen/core/Tensor.h>

#include "io/tasks/task.h"

namespace weft {

// Row numbers [rows] int64 in a data set of `size` rows for examples first .. first + rows - 1: of the training split in
// an order that changes with every epoch, of the test split as they stand.
at::Tensor finite_rows(Split split, int64_t first, int64_t rows, int64_t size, uint64_t seed);

}  // namespace weft
