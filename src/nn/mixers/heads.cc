#include "nn/mixers/heads.h"

#include "base/error.h"

namespace weft {

int64_t head_dim_of(int64_t given, int64_t heads, const Site& site) {
  if (given > 0) return given;
  require(site.width % heads == 0, "{}: heads {} does not divide width {}; give head_dim", site.where, heads,
          site.width);
  return site.width / heads;
}

}  // namespace weft
