#include "study/reproduce.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/error.h"
#include "base/files.h"
#include "base/text.h"

extern char** environ;

namespace weft {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using Clock = std::chrono::steady_clock;

// A name that is good for a folder.
std::string folder_name(const std::string& arm, int64_t seed) {
  std::string name;
  for (const char c : arm)
    name += std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '.' ? c : '-';
  return fmt::format("{}-{}", name, seed);
}

std::string configuration_text(const Arm& arm) {
  return "experiment: " + arm.experiment.as_string() + "\n" + arm.configuration.dump();
}

std::string text_if_there(const std::string& path) { return fs::exists(path) ? read_text(path) : ""; }

// The result of an earlier run of the same configuration, if there is one.
bool earlier_result(const std::string& folder, const std::string& configuration, RunResult& result) {
  const auto path = folder + "/result.json";
  if (!fs::exists(path) || text_if_there(folder + "/arm.yaml") != configuration) return false;
  const auto root = json::parse(read_text(path), nullptr, /*allow_exceptions=*/false);
  require(root.is_object() && root.contains("metrics") && root["metrics"].is_object(),
          "{}: not a result; remove the file to run this arm again", path);
  for (const auto& [name, value] : root["metrics"].items())
    if (value.is_number()) result.metrics[name] = value.get<double>();
  return true;
}

// A folder of this configuration: what a run of another one has left there is removed, nothing else ever is.
void prepare_folder(const std::string& folder, const std::string& configuration) {
  if (text_if_there(folder + "/arm.yaml") == configuration) return;
  require(!fs::exists(folder) ||
              (fs::is_directory(folder) && (fs::is_empty(folder) || fs::exists(folder + "/arm.yaml"))),
          "{}: is there already and is not the folder of a run (it has no arm.yaml); choose another --folder",
          folder);
  fs::remove_all(folder);
  fs::create_directories(folder);
  write_atomically(folder + "/arm.yaml", configuration);
}

struct Job {
  std::string arm, folder, configuration, note;
  int64_t seed = 0;
  double share = 0;
  bool done = false;
  RunResult result;
};

// One running process and the end of the pipe that it writes to.
struct Process {
  Job* job;
  pid_t pid;
  int output;
  std::string buffer;
};

Process start(Job& job, const std::vector<std::string>& command) {
  auto words = command;
  words.insert(words.end(), {"--run", fmt::format("{}:{}", job.arm, job.seed), "--folder", job.folder});
  std::vector<char*> arguments;
  for (auto& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  int ends[2];
  require(pipe2(ends, O_CLOEXEC) == 0, "reproduce: no pipes left");
  const auto errors = job.folder + "/errors.txt";
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
  posix_spawn_file_actions_addopen(&actions, 2, errors.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
  pid_t pid = 0;
  const int failed = posix_spawn(&pid, arguments[0], &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  require(failed == 0, "reproduce: {} does not start", words[0]);
  return {&job, pid, ends[0], ""};
}

// Reads what is there; false at the end of the output.
bool listen(Process& process) {
  char bytes[4096];
  const auto count = read(process.output, bytes, sizeof bytes);
  if (count <= 0) return count < 0 && errno == EINTR;
  process.buffer.append(bytes, static_cast<size_t>(count));
  for (size_t end; (end = process.buffer.find('\n')) != std::string::npos;) {
    const auto line = process.buffer.substr(0, end);
    process.buffer.erase(0, end + 1);
    if (!line.starts_with("progress ")) continue;
    char* rest = nullptr;
    process.job->share = std::clamp(std::strtod(line.c_str() + 9, &rest), 0.0, 1.0);
    process.job->note = *rest == ' ' ? rest + 1 : rest;
  }
  return true;
}

std::string last_line(const std::string& text) {
  std::string line, last;
  for (const char c : text + "\n") {
    if (c != '\n') {
      line += c;
    } else {
      if (!line.empty()) last = line;
      line.clear();
    }
  }
  return last.empty() ? "it said nothing" : last;
}

class Scheduler {
 public:
  Scheduler(std::vector<Job>& jobs, const ReproduceOptions& options, size_t at_once)
      : jobs_(jobs), options_(options), at_once_(at_once), begin_(Clock::now()) {
    for (auto& job : jobs_)
      if (!job.done) waiting_.push_back(&job);
    before_ = static_cast<double>(jobs_.size() - waiting_.size());
  }
  ~Scheduler() {  // only when an exception ends it
    for (auto& process : running_) end(process, SIGKILL);
  }

  bool run(Reproduction& result) {
    while (!waiting_.empty() || !running_.empty()) {
      while (!stopped_ && running_.size() < at_once_ && !waiting_.empty()) {
        running_.push_back(start(*waiting_.front(), options_.command));
        waiting_.erase(waiting_.begin());
      }
      if (stopped_ && running_.empty()) break;
      wait(result);
      if (!stopped_ && options_.stop()) {
        stopped_ = true;
        for (const auto& process : running_) kill(process.pid, SIGTERM);
      }
    }
    options_.out->clear();
    return stopped_;
  }

 private:
  static void end(Process& process, int signal) {
    kill(process.pid, signal);
    close(process.output);
    waitpid(process.pid, nullptr, 0);
  }

  void wait(Reproduction& result) {
    std::vector<pollfd> ends;
    for (const auto& process : running_) ends.push_back({process.output, POLLIN, 0});
    if (poll(ends.data(), ends.size(), 250) < 0) return;  // a signal
    for (size_t i = ends.size(); i-- > 0;) {
      if (!ends[i].revents || listen(running_[i])) continue;
      finish(running_[i], result);
      running_.erase(running_.begin() + static_cast<std::ptrdiff_t>(i));
    }
    show();
  }

  void finish(Process& process, Reproduction& result) {
    int status = 0;
    close(process.output);
    while (waitpid(process.pid, &status, 0) < 0 && errno == EINTR) {
    }
    auto& job = *process.job;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0 &&
        earlier_result(job.folder, job.configuration, job.result)) {
      job.done = true;
      job.share = 1;
      options_.out->line(fmt::format("{} seed {}: done", job.arm, job.seed));
    } else if (!stopped_ && !options_.stop()) {
      job.share = 1;
      result.failures.push_back(fmt::format("{} seed {}: {}", job.arm, job.seed,
                                            WIFSIGNALED(status)
                                                ? fmt::format("ended by signal {}", WTERMSIG(status))
                                                : last_line(text_if_there(job.folder + "/errors.txt"))));
      options_.out->line(result.failures.back());
    }
  }

  void show() {
    double done = 0;
    for (const auto& job : jobs_) done += job.share;
    const double seconds = std::chrono::duration<double>(Clock::now() - begin_).count();
    const double fresh = done - before_, left = static_cast<double>(jobs_.size()) - done;
    constexpr int bar = 24;
    const int filled = static_cast<int>(bar * done / static_cast<double>(jobs_.size()));
    std::string text = "[" + std::string(static_cast<size_t>(filled), '#') +
                       std::string(static_cast<size_t>(bar - filled), '.') +
                       fmt::format("] {:.1f}/{} runs  {}", done, jobs_.size(), duration_text(seconds));
    if (fresh > 0.02) text += "  ETA " + duration_text(seconds * left / fresh);
    for (const auto& process : running_)
      text += fmt::format("  {}:{} {:.0f}% {}", process.job->arm, process.job->seed, 100 * process.job->share,
                          process.job->note);
    options_.out->update(text);
    if (options_.out->live() || seconds - shown_ < 30) return;
    shown_ = seconds;
    options_.out->line(text);
  }

  std::vector<Job>& jobs_;
  const ReproduceOptions& options_;
  size_t at_once_;
  std::vector<Job*> waiting_;
  std::vector<Process> running_;
  bool stopped_ = false;
  double before_ = 0, shown_ = 0;
  Clock::time_point begin_;
};

}  // namespace

Reproduction reproduce(const Study& study, const ReproduceOptions& given) {
  Reproduction result;
  auto options = given;
  LineOutput silent;
  if (!options.out) options.out = &silent;
  std::vector<Job> jobs;
  for (const auto seed : study.seeds)
    for (const auto& arm : study.arms) {
      find_experiment(arm.experiment).make(arm.configuration);  // mistakes show before anything runs
      Job job{.arm = arm.name,
              .folder = options.folder + "/" + folder_name(arm.name, seed),
              .configuration = configuration_text(arm),
              .note = "",
              .seed = seed,
              .result = {arm.name, seed, {}}};
      job.done = earlier_result(job.folder, job.configuration, job.result);
      if (job.done)
        job.share = 1;
      else
        prepare_folder(job.folder, job.configuration);
      jobs.push_back(std::move(job));
    }
  const auto cores = static_cast<int64_t>(std::max(1u, std::thread::hardware_concurrency()));
  const int64_t at_once =
      std::clamp<int64_t>(options.jobs > 0 ? options.jobs : cores, 1, static_cast<int64_t>(jobs.size()));
  options.command.insert(
      options.command.end(),
      {"--threads",
       std::to_string(options.threads > 0 ? options.threads : std::max<int64_t>(1, cores / at_once))});
  result.stopped = Scheduler(jobs, options, static_cast<size_t>(at_once)).run(result);
  for (auto& job : jobs)
    if (job.done) result.results.push_back(std::move(job.result));
  return result;
}

bool run_arm(const Study& study, const std::string& name, int64_t seed, const std::string& folder,
             at::Device device, const std::function<bool()>& stop) {
  const auto arm =
      std::find_if(study.arms.begin(), study.arms.end(), [&](const Arm& a) { return a.name == name; });
  require(arm != study.arms.end(), "{}: no arm is called '{}' at size {}", study.path, name, study.size);
  prepare_folder(folder, configuration_text(*arm));
  auto shown = Clock::now() - std::chrono::hours(1);
  const ExperimentContext context{.seed = static_cast<uint64_t>(seed),
                                  .folder = folder,
                                  .base = study.folder,
                                  .device = device,
                                  .progress =
                                      [&](double share, const std::string& note) {
                                        const auto now = Clock::now();
                                        if (now - shown < std::chrono::milliseconds(500)) return;
                                        shown = now;
                                        std::printf("progress %.4f %s\n", share, note.c_str());
                                        std::fflush(stdout);
                                      },
                                  .stop = stop};
  const auto outcome = find_experiment(arm->experiment).make(arm->configuration)->run(context);
  if (outcome.stopped) return false;
  json metrics = json::object();
  for (const auto& [metric, value] : outcome.metrics)
    metrics[metric] = std::isfinite(value) ? json(value) : json(nullptr);
  write_atomically(folder + "/result.json",
                   json({{"arm", name}, {"seed", seed}, {"metrics", metrics}}).dump(1) + "\n");
  return true;
}

}  // namespace weft
