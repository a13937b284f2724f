// The version of weft that a file was compiled against. Every object file that registers something refers to
// a symbol whose name holds the version; a plug-in built against other headers does not find it in libweft.so
// and is refused when it is loaded, instead of calling functions whose classes have another layout.
#pragma once

namespace weft {

inline constexpr char kHeaderVersion[] = "0.1.0";

namespace abi_0_1_0 {
extern const char version[];  // of libweft.so
}

// Makes the symbol needed wherever this header is included; nobody reads it.
[[gnu::used]] inline const char* const required_version = abi_0_1_0::version;

}  // namespace weft
