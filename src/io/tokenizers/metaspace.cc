#include "io/tokenizers/metaspace.h"

#include "base/error.h"
#include "io/tokenizers/utf8.h"

namespace weft {

namespace {

Metaspace::Scheme read_scheme(const JsonPlace& place) {
  const std::string name = place.text();
  if (name == "always") return Metaspace::Scheme::always;
  if (name == "first") return Metaspace::Scheme::first;
  if (name == "never") return Metaspace::Scheme::never;
  throw InputError(fmt::format("{}: found '{}', expected always, first or never", place.where(), name));
}

}  // namespace

Metaspace read_metaspace(const JsonPlace& place) {
  place.only({"type", "replacement", "prepend_scheme", "split", "add_prefix_space", "str_rep"});
  Metaspace meta{.replacement = place.at("replacement").text()};
  require(!meta.replacement.empty() && utf8_step(meta.replacement, 0).bytes == meta.replacement.size(),
          "{}: expected one character, found '{}'", place.at("replacement").where(), meta.replacement);
  if (place.has("prepend_scheme")) meta.scheme = read_scheme(place.at("prepend_scheme"));
  meta.split = place.boolean_or("split", true);
  if (!place.boolean_or("add_prefix_space", true)) {
    require(!place.has("prepend_scheme") || meta.scheme == Metaspace::Scheme::never,
            "{}: is false, but prepend_scheme is not 'never'", place.at("add_prefix_space").where());
    meta.scheme = Metaspace::Scheme::never;
  }
  return meta;
}

}  // namespace weft
