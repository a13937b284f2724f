// The type names of the safetensors format and their ATen types.
#pragma once

#include <c10/core/ScalarType.h>

#include <optional>
#include <string>
#include <string_view>

namespace weft {

std::optional<at::ScalarType> safetensors_dtype(std::string_view name);
// "" for types that the format does not have.
std::string_view safetensors_dtype_name(at::ScalarType dtype);
// "F64, F32, ..."
std::string safetensors_dtype_names();

}  // namespace weft
