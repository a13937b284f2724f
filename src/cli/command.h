// Subcommands of the `weft` program and their flags. A command is one file:
//     struct EvalFlags {
//       std::string model;
//       int64_t chunk = 1024;
//       void flags(Flags& f) {
//         f.argument("model", model, "model directory");
//         f("--chunk", chunk, "tokens in one call");
//       }
//     };
//     int run(const EvalFlags& flags, const Session& session);  // returns the exit code; errors are thrown
//     const Command register_eval{"eval", "bits per byte of a file", run};
// What the flags' members hold before parsing are the defaults.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

namespace weft::cli {

// Flags that every command has.
struct Session {
  int64_t threads = 0;  // 0: as many as torch finds right
  bool quiet = false;
  std::string device = "auto";
  std::vector<std::string> plugins;
};

// Of an optional value one can tell that the flag was not given.
using FlagValue = std::variant<bool*, int64_t*, double*, std::string*, std::vector<std::string>*,
                               std::optional<int64_t>*, std::optional<double>*>;

struct Flag {
  std::string name;  // "--seed", or "model" for a positional argument
  FlagValue value;
  std::string help;
  bool positional = false, required = false;
};

// Collects the flags of one command.
class Flags {
 public:
  template <class T>
  void operator()(const char* name, T& value, const char* help) {
    list_.push_back({name, &value, help});
  }
  template <class T>
  void argument(const char* name, T& value, const char* help, bool required = true) {
    list_.push_back({name, &value, help, true, required});
  }
  const std::vector<Flag>& list() const { return list_; }

 private:
  std::vector<Flag> list_;
};

struct CommandEntry {
  std::string name, summary;
  // Declares the flags and returns what to call once they are filled.
  std::function<std::function<int(const Session&)>(Flags&)> prepare;
};

void register_command(CommandEntry entry);
const std::vector<CommandEntry>& commands();  // by name

struct Command {
  template <class F>
  Command(const char* name, const char* summary, int (*run)(const F&, const Session&)) {
    register_command({name, summary, [run](Flags& flags) -> std::function<int(const Session&)> {
                        const auto values = std::make_shared<F>();
                        values->flags(flags);
                        return [run, values](const Session& session) { return run(*values, session); };
                      }});
  }
};

// What the arguments ask for.
struct Invocation {
  int exit_code = 0;
  bool done = false;  // help, version or bad usage: `output` or `error` says it all
  std::string output, error;
  Session session;
  std::function<int(const Session&)> run;
};
Invocation parse(int argc, const char* const* argv);

}  // namespace weft::cli
