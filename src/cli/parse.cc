// Arguments to an Invocation. The only file that includes CLI11, which takes seconds to compile.
#include <CLI/CLI.hpp>

#include "base/text.h"
#include "cli/command.h"

namespace weft::cli {
namespace {

constexpr int kBadUsage = 2;

void add_flag(CLI::App& app, const Flag& flag) {
  std::visit(
      [&](auto* value) {
        using Value = std::remove_pointer_t<decltype(value)>;
        constexpr bool optional =
            std::is_same_v<Value, std::optional<int64_t>> || std::is_same_v<Value, std::optional<double>>;
        if constexpr (std::is_same_v<Value, bool>) {
          app.add_flag(flag.name, *value, flag.help);
        } else if constexpr (optional) {
          app.add_option(flag.name, *value, flag.help);
        } else {
          auto* option = app.add_option(flag.name, *value, flag.help);
          if (flag.required) option->required();
          if constexpr (std::is_same_v<Value, std::vector<std::string>>) {
            if (!flag.positional)
              option->expected(1)
                  ->allow_extra_args(false)
                  ->take_all();  // --set a=1 --set b=2, each takes one value
          } else if (flag.name.starts_with("--")) {
            option->capture_default_str();
          }
        }
      },
      flag.value);
}

void add_session(CLI::App& app, Session& session) {
  app.add_flag("--quiet,-q", session.quiet, "results and errors only, no progress and no timings");
  app.add_option("--threads", session.threads, "threads for computing; 0: one for each core")
      ->check(CLI::Range(0, 1024));
  app.add_option("--device", session.device, "auto, cpu, cuda or cuda:N")->capture_default_str();
  app.add_option("--plugin", session.plugins, "shared library with more mixers; may be given several times")
      ->expected(1)
      ->allow_extra_args(false)
      ->take_all();
}

// Flag names of a command, for guesses at what a misspelt one meant.
std::vector<std::string> flag_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const auto* option : app.get_options())
    for (const auto& name : option->get_lnames()) names.push_back("--" + name);
  return names;
}

std::string guess_text(const std::string& word, const std::vector<std::string>& known) {
  const auto guess = nearest_word(word, known);
  return guess.empty() ? "" : ", did you mean '" + guess + "'?";
}

// The first argument that starts like a flag and is none of the command's.
std::string unknown_flag(const CLI::App& app, const std::vector<std::string>& arguments) {
  for (const auto& argument : arguments) {
    const auto name = argument.substr(0, argument.find('='));
    if (name.starts_with("--") && name.size() > 2 && !app.get_option_no_throw(name)) return name;
  }
  return "";
}

Invocation bad_usage(const std::string& problem, const std::string& command) {
  return {.exit_code = kBadUsage,
          .done = true,
          .output = "",
          .error = problem + "\nsee weft " + (command.empty() ? "" : command + " ") + "--help",
          .session = {},
          .run = {}};
}

Invocation whole_help() {
  size_t width = 0;
  for (const auto& command : commands()) width = std::max(width, command.name.size());
  std::string text = "weft: hybrid sequence models\n\nusage: weft COMMAND [ARGUMENTS] [FLAGS]\n\ncommands:\n";
  for (const auto& command : commands())
    text += "  " + command.name + std::string(width + 2 - command.name.size(), ' ') + command.summary + "\n";
  text += "\nweft COMMAND --help lists a command's arguments; weft --version says what this build is.\n";
  return {.exit_code = 0, .done = true, .output = text, .error = "", .session = {}, .run = {}};
}

Invocation parse_command(const CommandEntry& command, std::vector<std::string> arguments) {
  Invocation result;
  CLI::App app(command.summary, "weft " + command.name);
  Flags flags;
  result.run = command.prepare(flags);
  for (const auto& flag : flags.list()) add_flag(app, flag);
  add_session(app, result.session);
  try {
    std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());  // as CLI11 takes them
    app.parse(reversed);
  } catch (const CLI::CallForHelp&) {
    return {.exit_code = 0, .done = true, .output = app.help(), .error = "", .session = {}, .run = {}};
  } catch (const CLI::ParseError& error) {
    const auto unknown = unknown_flag(app, arguments);
    if (unknown.empty()) return bad_usage(error.what(), command.name);
    return bad_usage("unknown flag " + unknown + guess_text(unknown, flag_names(app)), command.name);
  }
  return result;
}

}  // namespace

Invocation parse(int argc, const char* const* argv) {
  const std::vector<std::string> arguments(argv + std::min(argc, 1), argv + argc);
  if (arguments.empty()) return {kBadUsage, true, "", "no command given\n" + whole_help().output, {}, {}};
  if (arguments[0] == "--help" || arguments[0] == "-h" || arguments[0] == "help") return whole_help();
  const std::string name = arguments[0] == "--version" ? "version" : arguments[0];
  std::vector<std::string> known;
  for (const auto& command : commands()) {
    if (command.name == name) return parse_command(command, {arguments.begin() + 1, arguments.end()});
    known.push_back(command.name);
  }
  return bad_usage("'" + name + "' is not a command" + guess_text(name, known) + "\nknown: " + join(known),
                   "");
}

}  // namespace weft::cli
