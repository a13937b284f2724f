#include "base/version.h"

#include <string_view>

namespace weft {

static_assert(
    std::string_view(WEFT_VERSION) == kHeaderVersion,
    "the project's version changed: change kHeaderVersion and the name of the abi_ namespace with it");

namespace abi_0_1_0 {
const char version[] = WEFT_VERSION;
}

}  // namespace weft
