#include "bench/first_call.h"

#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <memory>

#include "base/error.h"
#include "bench/ops.h"

namespace weft::bench {

void call_once(const OpCase& subject, double case_s, const std::function<void(std::string_view)>& say) {
  double inputs_s = case_s;
  for (const bool gradients : {false, true}) {
    if (gradients && subject.step) break;
    const auto call = call_on_new_inputs(subject, gradients);
    inputs_s += call.inputs_s;
    say(fmt::format("result {} {:.9f} {:.9f}\n", pass_of(subject, gradients), call.call_s, inputs_s));
  }
}

std::vector<FirstCall> first_calls(const std::string& command) {
  using Clock = std::chrono::steady_clock;
  const auto begin = Clock::now();
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> pipe(popen(("exec " + command).c_str(), "r"), pclose);
  require(pipe != nullptr, "{}: /bin/sh does not start", command);
  std::vector<FirstCall> calls;
  char line[256], pass[9];
  while (std::fgets(line, sizeof line, pipe.get())) {
    FirstCall call;
    call.start_s = std::chrono::duration<double>(Clock::now() - begin).count();
    require(std::sscanf(line, "result %8s %lf %lf", pass, &call.call_s, &call.inputs_s) == 3,
            "{}: says '{}'; expected 'result PASS SECONDS SECONDS'", command, line);
    call.start_s -= call.inputs_s;
    call.pass = pass;
    calls.push_back(call);
  }
  const int status = pclose(pipe.release());
  require(status == 0 && !calls.empty(), "{}: {}", command,
          status == 0 ? "says nothing" : "fails, as it says above");
  return calls;
}

}  // namespace weft::bench
