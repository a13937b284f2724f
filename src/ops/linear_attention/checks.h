// Shape checks of the linear attention family; private to the folder.
#pragma once

#include "ops/linear_attention/linear_attention.h"

namespace weft::ops {

// InputError unless the tensors of `in` agree. `op` names the caller in the message.
void check_linear_attention(const char* op, const LinearAttention& in);

}  // namespace weft::ops
