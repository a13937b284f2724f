#include "io/gguf/architecture.h"

#include <algorithm>
#include <map>

#include "base/error.h"
#include "base/text.h"

namespace weft {
namespace {

std::map<std::string, GgufArchitecture>& gguf_registry() {
  static std::map<std::string, GgufArchitecture> all;
  return all;
}

}  // namespace

void GgufNames::linear(const std::string& tensor, const std::string& gguf) {
  link(tensor + ".weight", gguf + ".weight");
  optional(tensor + ".bias", gguf + ".bias");
}

bool GgufNames::optional(const std::string& tensor, const std::string& gguf) {
  if (!has(tensor, gguf)) return false;
  link(tensor, gguf);
  return true;
}

void register_gguf_architecture(GgufArchitecture architecture) {
  const auto name = architecture.name;
  invariant(gguf_registry().emplace(name, std::move(architecture)).second,
            "the GGUF architecture {} is registered twice", name);
}

std::vector<std::string> gguf_architecture_names() {
  std::vector<std::string> names;
  for (const auto& [name, unused] : gguf_registry()) names.push_back(name);
  return names;
}

std::vector<std::string> gguf_writable_model_types() {
  std::vector<std::string> types;
  for (const auto& [name, architecture] : gguf_registry())
    types.insert(types.end(), architecture.model_types.begin(), architecture.model_types.end());
  std::sort(types.begin(), types.end());
  return types;
}

const GgufArchitecture& find_gguf_architecture(const std::string& name, const std::string& where) {
  const auto found = gguf_registry().find(name);
  if (found != gguf_registry().end()) return found->second;
  const auto guess = nearest_word(name, gguf_architecture_names());
  throw InputError(fmt::format("{}: weft does not know the GGUF architecture '{}'{}; it knows {}", where,
                               name, guess.empty() ? "" : ", did you mean '" + guess + "'?",
                               join(gguf_architecture_names())));
}

const GgufArchitecture* gguf_architecture_for(const std::string& model_type) {
  for (const auto& [name, architecture] : gguf_registry())
    if (std::find(architecture.model_types.begin(), architecture.model_types.end(), model_type) !=
        architecture.model_types.end())
      return &architecture;
  return nullptr;
}

}  // namespace weft
