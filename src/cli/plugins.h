// Shared libraries that bring mixers of their own: loading one runs its Register<> objects.
#pragma once

#include <string>

namespace weft::cli {

// InputError, with the loader's reason, when it cannot be loaded or was built for another version of weft. A
// file name without a folder means one in the current folder.
void load_plugin(const std::string& path);

}  // namespace weft::cli
