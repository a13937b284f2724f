// Errors by who can act on them. Library code throws these and never prints or exits; only `cli` catches.
//   InputError   the user's input is wrong: says what was found, where, what was expected, what to do
//   Unsupported  the request is sound but not possible here (device, dtype, form): says what is
//   Bug          weft itself is wrong: carries the place in our source
#pragma once

#include <fmt/format.h>

#include <source_location>
#include <stdexcept>
#include <string>

namespace weft {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class InputError : public Error {
 public:
  using Error::Error;
};

class Unsupported : public Error {
 public:
  using Error::Error;
};

class Bug : public Error {
 public:
  using Error::Error;
};

// Throws InputError unless `ok`. The message names the file, field, tensor or shape and what was expected.
template <class... Args>
void require(bool ok, fmt::format_string<Args...> message, Args&&... args) {
  if (!ok) [[unlikely]]
    throw InputError(fmt::format(message, std::forward<Args>(args)...));
}

// Throws Unsupported unless `ok`.
template <class... Args>
void supported(bool ok, fmt::format_string<Args...> message, Args&&... args) {
  if (!ok) [[unlikely]]
    throw Unsupported(fmt::format(message, std::forward<Args>(args)...));
}

// A format string together with the place it was written at.
template <class... Args>
struct LocatedFormat {
  fmt::format_string<Args...> text;
  std::source_location place;
  template <class S>
  consteval LocatedFormat(const S& s, std::source_location where = std::source_location::current())
      : text(s), place(where) {}
};

// Throws Bug, with file and line, unless `ok`: for conditions that only our own mistakes can break.
template <class... Args>
void invariant(bool ok, LocatedFormat<std::type_identity_t<Args>...> message, Args&&... args) {
  if (!ok) [[unlikely]]
    throw Bug(fmt::format("{}:{}: {}", message.place.file_name(), message.place.line(),
                          fmt::format(message.text, std::forward<Args>(args)...)));
}

}  // namespace weft
