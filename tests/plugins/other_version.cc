// What a plug-in built with the headers of another version looks like to the loader; see base/version.h.
namespace weft {
namespace abi_99_0_0 {
extern const char version[];
}
[[gnu::used]] inline const char* const required_version = abi_99_0_0::version;
}  // namespace weft
