#include "base/files.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "base/error.h"

namespace weft {

namespace {

constexpr size_t kBufferBytes = 1 << 20;

[[noreturn]] void fail(const std::string& path, const char* action, int error) {
  throw InputError(fmt::format("{}: cannot {}: {}", path, action, std::strerror(error)));
}

int open_retrying(const std::string& path, int flags) {
  int fd;
  do fd = ::open(path.c_str(), flags | O_CLOEXEC, 0666);
  while (fd < 0 && errno == EINTR);
  return fd;
}

// Closes what it holds, so that a throw between open and use leaks nothing.
struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

void write_fully(int fd, const std::string& path, const char* data, size_t bytes) {
  while (bytes > 0) {
    const ssize_t done = ::write(fd, data, bytes);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) fail(path, "write", errno);
    data += done;
    bytes -= static_cast<size_t>(done);
  }
}

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
  const Descriptor file{open_retrying(path, O_RDONLY)};
  if (file.fd < 0) fail(path, "open", errno);
  struct stat info;
  if (::fstat(file.fd, &info) != 0) fail(path, "examine", errno);
  require(!S_ISDIR(info.st_mode), "{}: is a folder, expected a file", path);
  require(S_ISREG(info.st_mode), "{}: is not a regular file", path);
  size_ = static_cast<size_t>(info.st_size);
  if (size_ == 0) return;
  void* mapping = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, file.fd, 0);
  if (mapping == MAP_FAILED) fail(path, "map", errno);
  data_ = static_cast<const std::byte*>(mapping);
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(const_cast<std::byte*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      path_(std::move(other.path_)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(path_, other.path_);
  return *this;
}

std::string read_text(const std::string& path) {
  require(!std::filesystem::is_directory(path), "{}: is a folder, expected a file", path);
  const Descriptor file{open_retrying(path, O_RDONLY)};
  if (file.fd < 0) fail(path, "open", errno);
  std::string text, block(kBufferBytes, '\0');
  for (;;) {
    const ssize_t got = ::read(file.fd, block.data(), block.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail(path, "read", errno);
    if (got == 0) return text;
    text.append(block.data(), static_cast<size_t>(got));
  }
}

OutputFile::OutputFile(const std::string& path) : path_(path) {
  fd_ = open_retrying(path, O_WRONLY | O_CREAT | O_TRUNC);
  if (fd_ < 0) fail(path, "create", errno);
}

OutputFile::~OutputFile() {
  if (fd_ >= 0) ::close(fd_);
}

OutputFile::OutputFile(OutputFile&& other) noexcept
    : path_(std::move(other.path_)),
      fd_(std::exchange(other.fd_, -1)),
      written_(other.written_),
      buffer_(std::move(other.buffer_)) {}

void OutputFile::write(const void* data, size_t bytes) {
  invariant(fd_ >= 0, "{} is written after finish()", path_);
  if (buffer_.size() + bytes > kBufferBytes) flush();
  if (bytes < kBufferBytes) {
    buffer_.append(static_cast<const char*>(data), bytes);
  } else {
    write_fully(fd_, path_, static_cast<const char*>(data), bytes);
    written_ += bytes;
  }
}

void OutputFile::overwrite(uint64_t offset, const void* data, size_t bytes) {
  flush();
  invariant(offset + bytes <= written_, "{}: {} bytes at {} were not written before", path_, bytes, offset);
  const char* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t done = ::pwrite(fd_, from, bytes, static_cast<off_t>(offset));
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) fail(path_, "write", errno);
    from += done;
    offset += static_cast<uint64_t>(done);
    bytes -= static_cast<size_t>(done);
  }
}

void OutputFile::flush() {
  write_fully(fd_, path_, buffer_.data(), buffer_.size());
  written_ += buffer_.size();
  buffer_.clear();
}

void OutputFile::finish() {
  invariant(fd_ >= 0, "{}: finish() is called twice", path_);
  flush();
  // Character devices such as /dev/null cannot be synced; there is nothing to lose either.
  if (::fsync(fd_) != 0 && errno != EINVAL && errno != EROFS) fail(path_, "write to disk", errno);
  const int closed = ::close(std::exchange(fd_, -1));
  if (closed != 0 && errno != EINTR) fail(path_, "close", errno);
}

void sync_path(const std::string& path) {
  const Descriptor file{open_retrying(path, O_RDONLY)};
  if (file.fd < 0) fail(path, "open", errno);
  // Some network file systems do not sync folders and say EINVAL.
  if (::fsync(file.fd) != 0 && errno != EINVAL) fail(path, "write to disk", errno);
}

}  // namespace weft
