// The `weft` program: loads what must be loaded first, runs one subcommand, turns errors into one message and
// an exit code: 0 done, 1 an error, 2 bad usage, 130 and 143 stopped by SIGINT and SIGTERM.
#include <ATen/Parallel.h>
#include <c10/util/Exception.h>
#include <unistd.h>

#include <cstdio>
#include <exception>
#include <new>

#include "base/error.h"
#include "cli/command.h"
#include "cli/output.h"
#include "cli/plugins.h"
#include "cli/signals.h"
#include "ops/cuda_library.h"

namespace weft::cli {
namespace {

// Of the exception being handled.
std::string message() {
  try {
    throw;
  } catch (const Bug& bug) {
    return fmt::format(
        "{}\nthis is a mistake in weft itself; please report it with the command that led to it", bug.what());
  } catch (const c10::Error& error) {
    const std::string text = error.what_without_backtrace();
    if (text.find("can't allocate memory") == std::string::npos &&
        text.find("out of memory") == std::string::npos)
      return text;
    return "out of memory; make the model (width, heads, layers), run.batch or data.length smaller. The "
           "allocator says: " +
           text;
  } catch (const std::bad_alloc&) {
    return "out of memory";
  } catch (const std::exception& error) {
    return error.what();
  } catch (...) {
    return "unknown exception";
  }
}

void report(const std::string& text) { note("weft: error: " + text); }

// Exceptions that nobody can catch: those of a plug-in while it registers its mixers.
[[noreturn]] void on_terminate() {
  try {
    report(std::current_exception() ? message() : "terminated");
  } catch (...) {
    report("terminated");
  }
  std::_Exit(1);
}

int run(int argc, char** argv) {
  const auto invocation = parse(argc, argv);
  write_output(invocation.output);
  if (!invocation.error.empty()) report(invocation.error);
  if (invocation.done) return invocation.exit_code;
  for (const auto& plugin : invocation.session.plugins) load_plugin(plugin);
  if (invocation.session.threads > 0) at::set_num_threads(static_cast<int>(invocation.session.threads));
  return invocation.run(invocation.session);
}

}  // namespace
}  // namespace weft::cli

int main(int argc, char** argv) {
  using namespace weft::cli;
  std::set_terminate(on_terminate);
  try {
    weft::load_cuda_library();  // before anything asks torch about CUDA
    const int code = run(argc, argv);
    flush_output();
    return code;
  } catch (const Stopped& stopped) {
    report(stopped.what());
    return stopped.exit_code;
  } catch (...) {
    std::fflush(stdout);
    report(message());
    return 1;
  }
}
