#include "cli/plugins.h"

#include <dlfcn.h>

#include "base/error.h"
#include "base/version.h"

namespace weft::cli {

void load_plugin(const std::string& path) {
  const std::string file = path.find('/') == std::string::npos ? "./" + path : path;
  if (dlopen(file.c_str(), RTLD_NOW | RTLD_GLOBAL)) return;  // stays open: its mixers are registered
  const char* reason = dlerror();
  const std::string problem = reason ? reason : "unknown reason";
  // base/version.h: the symbol's name is the version of the headers.
  require(problem.find("4weft") == std::string::npos || problem.find("abi_") == std::string::npos,
          "--plugin {}: was built for another version of weft, this is {}; build it again with this "
          "version's headers ({})",
          path, kHeaderVersion, problem);
  throw InputError(fmt::format("--plugin {}: cannot be loaded: {}", path, problem));
}

}  // namespace weft::cli
