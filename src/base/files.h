// Files that are either whole or absent: read-only mappings, and writes that a crash or a full disk cannot
// tear. Every error is an InputError that names the path and the operating system's reason.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace weft {

// A whole file mapped read-only. Writing through data() faults; the mapping lives as long as the object.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;

  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  std::string_view text() const { return {reinterpret_cast<const char*>(data_), size_}; }
  const std::string& path() const { return path_; }

 private:
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  std::string path_;
};

// The whole content of a file. InputError when it is a folder, absent or unreadable.
std::string read_text(const std::string& path);

// A file being written through a buffer of 1 MiB. Created or truncated on construction. Without finish() the
// content is undefined: the destructor closes and says nothing.
class OutputFile {
 public:
  explicit OutputFile(const std::string& path);
  ~OutputFile();
  OutputFile(OutputFile&& other) noexcept;
  OutputFile& operator=(OutputFile&& other) = delete;

  void write(const void* data, size_t bytes);
  void write(std::string_view text) { write(text.data(), text.size()); }
  // Replaces bytes that were written before, for headers whose numbers are known last.
  void overwrite(uint64_t offset, const void* data, size_t bytes);
  uint64_t size() const { return written_ + buffer_.size(); }
  const std::string& path() const { return path_; }
  // Writes out what is buffered, fsyncs and closes.
  void finish();

 private:
  void flush();
  std::string path_;
  int fd_ = -1;
  uint64_t written_ = 0;
  std::string buffer_;
};

// A file that appears under its name complete or not at all. It is written as `<path>.tmp-<pid>` in the same
// folder; commit() fsyncs it, renames it over `path` and fsyncs the folder. Destroyed without commit() it
// removes the temporary file and leaves what was at `path` alone. A symbolic link is followed; a device or a
// pipe (/dev/stdout) is written to as it is.
class AtomicFile {
 public:
  explicit AtomicFile(const std::string& path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  OutputFile& out() { return file_; }
  void commit();

 private:
  bool direct_;
  std::string path_, temporary_;
  OutputFile file_;
  bool committed_ = false;
};

// AtomicFile in one call: `writer` fills the file; when it throws, the old file stays.
void write_atomically(const std::string& path, const std::function<void(OutputFile&)>& writer);
void write_atomically(const std::string& path, std::string_view content);

// A folder that appears under its name complete or not at all, for checkpoints. It is filled as
// `<path>.tmp-<pid>`; commit() fsyncs every file and folder in it, renames it to `path` and fsyncs the
// parent. Destroyed without commit() it removes what was written.
class StagedDirectory {
 public:
  // What commit() does with a folder that has the name already: an error, or an exchange in one step, after
  // which the old folder is removed.
  enum class Existing { refuse, replace };
  explicit StagedDirectory(const std::string& path, Existing existing = Existing::refuse);
  ~StagedDirectory();
  StagedDirectory(const StagedDirectory&) = delete;
  StagedDirectory& operator=(const StagedDirectory&) = delete;

  // Where a file of this name is to be written before commit().
  std::string file(std::string_view name) const { return temporary_ + "/" + std::string(name); }
  const std::string& staging_path() const { return temporary_; }
  void commit();

 private:
  std::string path_, temporary_;
  Existing existing_;
  bool committed_ = false;
};

// Deletes files and folders `*.tmp-<pid>` in `parent` whose process is gone (or is this one, but no object of
// it uses them): what killed runs left. Returns their names, sorted. A `parent` that does not exist has none.
std::vector<std::string> remove_stale_staging(const std::string& parent);

// fsyncs a file or folder.
void sync_path(const std::string& path);

}  // namespace weft
