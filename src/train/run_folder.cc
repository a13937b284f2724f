#include "train/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "base/error.h"
#include "base/files.h"

namespace weft {

namespace fs = std::filesystem;

RunFolder::RunFolder(const std::string& path) : path_(fs::absolute(path).lexically_normal().string()) {
  while (path_.size() > 1 && path_.back() == '/') path_.pop_back();
  std::error_code error;
  for (fs::path at = path_; at.has_relative_path() && !fs::exists(at, error); at = at.parent_path())
    ++created_;
  for (const char* name : {"", "/checkpoints", "/tensorboard"}) {
    fs::create_directories(path_ + name, error);
    require(!error, "{}{}: cannot create this folder: {}", path_, name, error.message());
  }
  lock_ = ::open(file("lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  require(lock_ >= 0, "{}: cannot open: {}", file("lock"), std::strerror(errno));
  const bool held = ::flock(lock_, LOCK_EX | LOCK_NB) == 0;
  if (!held) ::close(lock_);
  require(held, "{}: another process is training in this folder; choose another run.dir", path_);
  remove_stale_staging(path_);
  remove_stale_staging(file("checkpoints"));
}

RunFolder::~RunFolder() { ::close(lock_); }

void RunFolder::discard() {
  if (created_ == 0) return;
  std::error_code ignored;
  fs::remove_all(path_, ignored);
  fs::path parent = fs::path(path_).parent_path();
  for (; created_ > 1; --created_, parent = parent.parent_path()) fs::remove(parent, ignored);
  created_ = 0;
}

}  // namespace weft
