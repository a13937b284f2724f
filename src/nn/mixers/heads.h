// What mixers with heads share.
#pragma once

#include "nn/mixer.h"

namespace weft {

// `given`, or width / heads when it is 0. InputError when heads does not divide the width.
int64_t head_dim_of(int64_t given, int64_t heads, const Site& site);

}  // namespace weft
