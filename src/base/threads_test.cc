#include "base/threads.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>
#include <vector>

namespace weft {
namespace {

// How often each of `count` items was visited.
std::vector<int> visits(int64_t count, int64_t chunk, int threads) {
  std::vector<int> seen(static_cast<size_t>(count), 0);
  run_in_parallel(count, chunk, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) ++seen[static_cast<size_t>(i)];
  });
  return seen;
}

TEST(Threads, EveryItemOnce) {
  for (const int threads : {0, 1, 2, 3, 8})
    for (const int64_t count : {0, 1, 2, 63, 1000})
      for (const int64_t chunk : {0, 1, 7, 2000})
        EXPECT_EQ(visits(count, chunk, threads), std::vector<int>(static_cast<size_t>(count), 1))
            << count << " items by " << chunk << " on " << threads;
}

TEST(Threads, ManyShortCalls) {
  std::atomic<int64_t> sum{0};
  for (int call = 0; call < 20000; ++call)
    run_in_parallel(4, 1, 3, [&](int64_t begin, int64_t) { sum += begin; });
  EXPECT_EQ(sum.load(), 20000 * 6);
}

TEST(Threads, WorkersTakePart) {
  std::atomic<int> arrived{0};
  const auto caller = std::this_thread::get_id();
  std::atomic<bool> other{false};
  run_in_parallel(2, 1, 2, [&](int64_t, int64_t) {
    ++arrived;
    if (std::this_thread::get_id() != caller) other = true;
    while (arrived < 2) std::this_thread::yield();  // ends only when two threads are here at once
  });
  EXPECT_TRUE(other.load());
}

TEST(Threads, InsideABodySerial) {
  std::atomic<int> wrong{0};
  run_in_parallel(8, 1, 4, [&](int64_t, int64_t) {
    const auto here = std::this_thread::get_id();
    run_in_parallel(16, 1, 4, [&](int64_t begin, int64_t end) {
      if (std::this_thread::get_id() != here || begin != 0 || end != 16) ++wrong;
    });
  });
  EXPECT_EQ(wrong.load(), 0);
}

TEST(Threads, SeveralCallers) {
  std::vector<std::thread> callers;
  std::atomic<int> wrong{0};
  for (int c = 0; c < 4; ++c)
    callers.emplace_back([&] {
      for (int call = 0; call < 500; ++call)
        if (visits(100, 9, 3) != std::vector<int>(100, 1)) ++wrong;
    });
  for (auto& caller : callers) caller.join();
  EXPECT_EQ(wrong.load(), 0);
}

TEST(Threads, FirstExceptionReachesTheCaller) {
  for (int call = 0; call < 100; ++call) {
    try {
      run_in_parallel(50, 1, 3, [](int64_t begin, int64_t) {
        if (begin >= 10) throw std::runtime_error("range");
      });
      ADD_FAILURE() << "nothing was thrown";
    } catch (const std::runtime_error& error) {
      EXPECT_STREQ(error.what(), "range");
    }
  }
  EXPECT_EQ(visits(10, 1, 3), std::vector<int>(10, 1));
}

TEST(Threads, WorkInAForkedChild) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "ThreadSanitizer knows no threads after a fork";
#endif
  visits(10, 1, 3);
  const pid_t child = fork();
  if (child == 0) _exit(visits(1000, 3, 3) == std::vector<int>(1000, 1) ? 0 : 1);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

}  // namespace
}  // namespace weft
