#include "base/files.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "base/error.h"
#include "base/scratch_folder.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

std::string message_of(const std::function<void()>& act) {
  try {
    act();
  } catch (const InputError& error) {
    return error.what();
  }
  return "(no InputError)";
}

void expect_message(const std::function<void()>& act, const std::string& part) {
  EXPECT_NE(message_of(act).find(part), std::string::npos) << message_of(act);
}

size_t entries_in(const std::string& folder) {
  return static_cast<size_t>(std::distance(fs::directory_iterator(folder), fs::directory_iterator()));
}

// A process id that no process has any more.
int dead_process() {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(0);
  ::waitpid(child, nullptr, 0);
  return child;
}

TEST(Files, MappedFileShowsTheContent) {
  const ScratchFolder folder;
  write_atomically(folder.file("a"), "some text");
  MappedFile file(folder.file("a"));
  EXPECT_EQ(file.text(), "some text");
  MappedFile moved = std::move(file);
  EXPECT_EQ(moved.text(), "some text");
  EXPECT_EQ(file.size(), 0u);
}

TEST(Files, AnEmptyFileMapsToNothing) {
  const ScratchFolder folder;
  write_atomically(folder.file("a"), "");
  EXPECT_EQ(MappedFile(folder.file("a")).text(), "");
  EXPECT_EQ(read_text(folder.file("a")), "");
}

TEST(Files, ReadingErrorsNameThePath) {
  const ScratchFolder folder;
  expect_message([&] { MappedFile(folder.file("none")); }, folder.file("none") + ": cannot open");
  expect_message([&] { read_text(folder.file("none")); }, folder.file("none") + ": cannot open");
  expect_message([&] { MappedFile{folder.path()}; }, "is a folder");
  expect_message([&] { read_text(folder.path()); }, "is a folder");
  expect_message([&] { MappedFile("/dev/null"); }, "not a regular file");
}

TEST(Files, OutputFileBuffersAndOverwrites) {
  const ScratchFolder folder;
  const std::string large(3 << 20, 'x');
  OutputFile file(folder.file("a"));
  file.write("head....");
  file.write(large);
  file.write("tail");
  EXPECT_EQ(file.size(), 8 + large.size() + 4);
  file.overwrite(4, "1234", 4);
  file.write("!");
  file.finish();
  EXPECT_EQ(read_text(folder.file("a")), "head1234" + large + "tail!");
}

TEST(Files, AtomicFileReplacesOnlyAtCommit) {
  const ScratchFolder folder;
  write_atomically(folder.file("a"), "old");
  AtomicFile file(folder.file("a"));
  file.out().write("new");
  EXPECT_EQ(read_text(folder.file("a")), "old");
  EXPECT_TRUE(fs::exists(fmt::format("{}.tmp-{}", folder.file("a"), ::getpid())));
  file.commit();
  EXPECT_EQ(read_text(folder.file("a")), "new");
  EXPECT_EQ(entries_in(folder.path()), 1u);
}

TEST(Files, AWriterThatThrowsLeavesTheOldFile) {
  const ScratchFolder folder;
  write_atomically(folder.file("a"), "old");
  const auto broken = [](OutputFile& out) {
    out.write("half");
    throw InputError("stopped");
  };
  expect_message([&] { write_atomically(folder.file("a"), broken); }, "stopped");
  EXPECT_EQ(read_text(folder.file("a")), "old");
  EXPECT_EQ(entries_in(folder.path()), 1u);
}

TEST(Files, AFullDiskIsAnInputError) {
  OutputFile full("/dev/full");
  full.write("x");
  expect_message([&] { full.finish(); }, "/dev/full: cannot write: No space left on device");
  OutputFile large("/dev/full");
  const std::string block(2 << 20, 'x');
  expect_message([&] { large.write(block); }, "No space left on device");
}

TEST(Files, AFullDiskLeavesTheOldFile) {
  const ScratchFolder folder;
  write_atomically(folder.file("a"), "old");
  const auto fill = [&](OutputFile&) {
    OutputFile full("/dev/full");
    full.write("x");
    full.finish();
  };
  expect_message([&] { write_atomically(folder.file("a"), fill); }, "No space left");
  EXPECT_EQ(read_text(folder.file("a")), "old");
  EXPECT_EQ(entries_in(folder.path()), 1u);
}

TEST(Files, UnwritableFoldersAreInputErrors) {
  const ScratchFolder folder;
  write_atomically(folder.file("plain"), "x");
  const std::string below = folder.file("plain/child");
  expect_message([&] { write_atomically(below, "y"); }, below);
  expect_message([&] { write_atomically(below, "y"); }, "Not a directory");
  expect_message([&] { StagedDirectory{below}; }, "Not a directory");
  expect_message([&] { write_atomically(folder.file("none/child"), "y"); }, "No such file or directory");
  EXPECT_EQ(entries_in(folder.path()), 1u);
}

TEST(Files, RenamingOverAFolderFailsAndCleansUp) {
  const ScratchFolder folder;
  fs::create_directories(folder.file("a/b"));
  expect_message([&] { write_atomically(folder.file("a"), "x"); }, "cannot rename");
  EXPECT_EQ(entries_in(folder.path()), 1u);
}

TEST(Files, TwoWritersOfOnePathDoNotCollide) {
  const ScratchFolder folder;
  AtomicFile first(folder.file("a")), second(folder.file("a"));
  first.out().write("first");
  second.out().write("second");
  second.commit();
  first.commit();
  EXPECT_EQ(read_text(folder.file("a")), "first");
}

TEST(Files, StagedDirectoryAppearsWhole) {
  const ScratchFolder folder;
  StagedDirectory staged(folder.file("step-1"));
  write_atomically(staged.file("weights"), "w");
  fs::create_directory(staged.file("sub"));
  write_atomically(staged.file("sub/more"), "m");
  EXPECT_FALSE(fs::exists(folder.file("step-1")));
  staged.commit();
  EXPECT_EQ(read_text(folder.file("step-1/weights")), "w");
  EXPECT_EQ(read_text(folder.file("step-1/sub/more")), "m");
  EXPECT_EQ(entries_in(folder.path()), 1u);
}

TEST(Files, StagedDirectoryWithoutCommitLeavesNothing) {
  const ScratchFolder folder;
  {
    const StagedDirectory staged(folder.file("step-1/"));
    write_atomically(staged.file("weights"), "w");
  }
  EXPECT_EQ(entries_in(folder.path()), 0u);
}

TEST(Files, StagedDirectoryNeverReplaces) {
  const ScratchFolder folder;
  fs::create_directory(folder.file("there"));
  expect_message([&] { StagedDirectory{folder.file("there")}; }, "exists already");
  StagedDirectory staged(folder.file("later"));
  fs::create_directory(folder.file("later"));
  expect_message([&] { staged.commit(); }, "exists already");
}

TEST(Files, StaleStagingIsRemoved) {
  const ScratchFolder folder;
  const int dead = dead_process();
  fs::create_directories(folder.file(fmt::format("step-2.tmp-{}/sub", dead)));
  write_atomically(folder.file(fmt::format("step-2.tmp-{}/sub/file", dead)), "x");
  write_atomically(folder.file("step-1"), "kept");
  write_atomically(folder.file("notes.tmp-x1"), "kept");
  OutputFile(folder.file(fmt::format("b.tmp-{}-2", dead))).finish();
  OutputFile(folder.file(fmt::format("c.tmp-{}", ::getpid())))
      .finish();  // a former run in a container like this one
  OutputFile(folder.file(fmt::format("d.tmp-{}", ::getppid()))).finish();  // alive
  const StagedDirectory active(folder.file("step-3"));
  const std::vector<std::string> expected = {fmt::format("b.tmp-{}-2", dead),
                                             fmt::format("c.tmp-{}", ::getpid()),
                                             fmt::format("step-2.tmp-{}", dead)};
  EXPECT_EQ(remove_stale_staging(folder.path()), expected);
  EXPECT_TRUE(fs::exists(active.staging_path()));
  EXPECT_EQ(entries_in(folder.path()), 4u);
  EXPECT_TRUE(remove_stale_staging(folder.file("none")).empty());
}

TEST(Files, AKilledWriterLeavesTheOldFileAndALeftover) {
  const ScratchFolder folder;
  write_atomically(folder.file("a"), "old");
  const pid_t child = ::fork();
  if (child == 0) {
    AtomicFile file(folder.file("a"));
    file.out().write("half");
    ::_exit(9);  // as a kill would: no destructor runs
  }
  ::waitpid(child, nullptr, 0);
  EXPECT_EQ(read_text(folder.file("a")), "old");
  EXPECT_EQ(remove_stale_staging(folder.path()), std::vector<std::string>{fmt::format("a.tmp-{}", child)});
}

TEST(Files, AtomicWritesFollowLinksAndLeaveDevicesAlone) {
  ScratchFolder folder;
  const auto target = folder.file("target"), link = folder.file("link");
  write_atomically(target, "old");
  fs::create_symlink(target, link);
  write_atomically(link, "new");
  EXPECT_TRUE(fs::is_symlink(link));
  EXPECT_EQ(read_text(target), "new");
  write_atomically("/dev/null", "gone");
  EXPECT_TRUE(fs::is_character_file("/dev/null"));
}

}  // namespace
}  // namespace weft
