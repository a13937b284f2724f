// Files and folders that appear complete or not at all, and the removal of what killed runs left.
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <set>

#include "base/error.h"
#include "base/files.h"

namespace fs = std::filesystem;

namespace weft {

namespace {

// Temporary names that living objects of this process use. In a container every run may have the same process
// id, so the id alone does not tell a leftover from work in progress.
struct InUse {
  std::mutex mutex;
  std::set<std::string> names;
};

InUse& in_use() {
  static InUse instance;
  return instance;
}

std::string absolute(const std::string& path) { return fs::absolute(path).lexically_normal().string(); }

// Reserves "<path>.tmp-<pid>", or "<path>.tmp-<pid>-<n>" while this process uses that; removes an old one of
// that name.
std::string reserve(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  require(!path.empty() && path != "/", "'{}' is not a name that can be written", path);
  InUse& used = in_use();
  const std::lock_guard lock(used.mutex);
  const std::string base = fmt::format("{}.tmp-{}", path, ::getpid());
  std::string name = base;
  for (int n = 1; !used.names.insert(absolute(name)).second; ++n) name = fmt::format("{}-{}", base, n);
  std::error_code ignored;
  fs::remove_all(name, ignored);
  return name;
}

void release(const std::string& name) {
  const std::lock_guard lock(in_use().mutex);
  in_use().names.erase(absolute(name));
}

void remove_and_release(const std::string& name) {
  std::error_code ignored;
  fs::remove_all(name, ignored);
  release(name);
}

std::string parent_of(const std::string& path) {
  const fs::path parent = fs::path(path).parent_path();
  return parent.empty() ? "." : parent.string();
}

void rename_or_fail(const std::string& from, const std::string& to) {
  const bool renamed =
      ::rename(from.c_str(), to.c_str()) == 0;  // before errno is read: arguments have no order
  require(renamed, "{}: cannot rename {} to this name: {}", to, from, std::strerror(errno));
}

// Both names go on existing, each with the other's folder.
void exchange_or_fail(const std::string& from, const std::string& to) {
  const bool exchanged = ::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_EXCHANGE) == 0;
  require(exchanged, "{}: cannot replace this folder: {}", to, std::strerror(errno));
}

// The process id in "name.tmp-123" or "name.tmp-123-4", or 0.
int staging_process(const std::string& name) {
  const size_t mark = name.rfind(".tmp-");
  if (mark == std::string::npos || mark == 0) return 0;
  const char* end = name.data() + name.size();
  int process = 0, number = 0;
  auto [stop, error] = std::from_chars(name.data() + mark + 5, end, process);
  if (error != std::errc() || process <= 0) return 0;
  if (stop == end) return process;
  if (*stop != '-') return 0;
  const auto [last, bad] = std::from_chars(stop + 1, end, number);
  return bad == std::errc() && last == end ? process : 0;
}

bool is_stale(const std::string& path, int process) {
  if (process == ::getpid()) {
    const std::lock_guard lock(in_use().mutex);
    return in_use().names.count(absolute(path)) == 0;
  }
  return ::kill(process, 0) != 0 && errno == ESRCH;
}

// The name must be given back when the file cannot be created, since then no destructor runs.
OutputFile open_reserved(const std::string& name) {
  try {
    return OutputFile(name);
  } catch (...) {
    remove_and_release(name);
    throw;
  }
}

// A device, pipe or socket, which cannot be replaced by a file without harm.
bool is_special(const std::string& path) {
  std::error_code error;
  const auto status = fs::status(path, error);
  return fs::exists(status) && !fs::is_regular_file(status) && !fs::is_directory(status);
}

std::string without_links(const std::string& path) {
  std::error_code error;
  if (!fs::is_symlink(fs::symlink_status(path, error))) return path;
  const auto target = fs::canonical(path, error);
  return error ? path : target.string();
}

}  // namespace

AtomicFile::AtomicFile(const std::string& path)
    : direct_(is_special(path)),
      path_(direct_ ? path : without_links(path)),
      temporary_(direct_ ? path : reserve(path_)),
      file_(direct_ ? OutputFile(path) : open_reserved(temporary_)) {}

AtomicFile::~AtomicFile() {
  if (direct_) return;
  if (committed_)
    release(temporary_);
  else
    remove_and_release(temporary_);
}

void AtomicFile::commit() {
  invariant(!committed_, "{}: commit() is called twice", path_);
  file_.finish();
  if (direct_) return;
  rename_or_fail(temporary_, path_);
  committed_ = true;
  sync_path(parent_of(path_));
}

void write_atomically(const std::string& path, const std::function<void(OutputFile&)>& writer) {
  AtomicFile file(path);
  writer(file.out());
  file.commit();
}

void write_atomically(const std::string& path, std::string_view content) {
  write_atomically(path, [&](OutputFile& out) { out.write(content); });
}

StagedDirectory::StagedDirectory(const std::string& path, Existing existing)
    : path_(path), temporary_(reserve(path)), existing_(existing) {
  std::error_code error;
  const bool exists = existing == Existing::refuse && fs::exists(fs::symlink_status(path, error));
  const bool created = !exists && ::mkdir(temporary_.c_str(), 0777) == 0;
  const int reason = errno;
  if (created) return;
  remove_and_release(temporary_);
  require(!exists, "{}: exists already; choose another name or move it away", path);
  throw InputError(fmt::format("{}: cannot create this folder: {}", temporary_, std::strerror(reason)));
}

StagedDirectory::~StagedDirectory() {
  if (committed_)
    release(temporary_);
  else
    remove_and_release(temporary_);
}

void StagedDirectory::commit() {
  invariant(!committed_, "{}: commit() is called twice", path_);
  std::error_code error;
  for (const auto& entry : fs::recursive_directory_iterator(temporary_, error))
    if (entry.is_regular_file() || entry.is_directory()) sync_path(entry.path().string());
  require(!error, "{}: cannot list this folder: {}", temporary_, error.message());
  sync_path(temporary_);
  // rename() would silently replace an empty folder.
  const bool exists = fs::exists(fs::symlink_status(path_, error));
  require(!exists || existing_ == Existing::replace,
          "{}: exists already; choose another name or move it away", path_);
  if (exists)
    exchange_or_fail(temporary_, path_);
  else
    rename_or_fail(temporary_, path_);
  committed_ = true;
  sync_path(parent_of(path_));
  if (exists) fs::remove_all(temporary_, error);  // the old folder; what is left of it is stale staging
}

std::vector<std::string> remove_stale_staging(const std::string& parent) {
  std::vector<std::string> removed;
  std::error_code error;
  if (!fs::exists(parent, error)) return removed;
  std::vector<fs::path> found;
  for (const auto& entry : fs::directory_iterator(parent, error)) found.push_back(entry.path());
  require(!error, "{}: cannot list this folder: {}", parent, error.message());
  for (const auto& path : found) {
    const int process = staging_process(path.filename().string());
    if (process == 0 || !is_stale(path.string(), process)) continue;
    fs::remove_all(path, error);
    require(!error, "{}: cannot remove this leftover: {}", path.string(), error.message());
    removed.push_back(path.filename().string());
  }
  std::sort(removed.begin(), removed.end());
  return removed;
}

}  // namespace weft
