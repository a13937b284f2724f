#include "base/threads.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace weft {
namespace {

constexpr auto kSpin = std::chrono::microseconds(50);

inline void pause_cpu() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

// Waits until `value` is no longer `old`: a while by looking, then asleep. Wakes by notify_all.
void wait_while(const std::atomic<uint32_t>& value, uint32_t old) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do
    for (int i = 0; i < 32; ++i) {
      if (value.load(std::memory_order_acquire) != old) return;
      pause_cpu();
    }
  while (std::chrono::steady_clock::now() < end);
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

struct Job {
  const std::function<void(int64_t, int64_t)>& body;
  const int64_t count, chunk;
  std::atomic<int64_t> next{0};
  std::atomic<int> seats;  // workers that may still join
  std::atomic<bool> failed{false};
  std::exception_ptr error{};

  void work() {
    for (;;) {
      const int64_t begin = next.fetch_add(chunk, std::memory_order_relaxed);
      if (begin >= count) return;
      try {
        body(begin, std::min(begin + chunk, count));
      } catch (...) {
        if (!failed.exchange(true)) error = std::current_exception();
        next.store(count, std::memory_order_relaxed);
      }
    }
  }
};

thread_local bool inside = false;  // this thread runs a body

class Pool {
 public:
  ~Pool() {
    stopping_ = true;
    ring();
    for (auto& worker : workers_) worker.join();
  }

  void run(Job& job) {
    while (workers_.size() < static_cast<size_t>(job.seats.load()))
      workers_.emplace_back([this] { serve(); });
    job_.store(&job);
    ring();
    inside = true;
    job.work();
    inside = false;
    job_.store(nullptr);
    // A worker counts itself before it looks at job_, so from here on none begins and those counted may have it.
    for (uint32_t busy = busy_.load(); busy != 0; busy = busy_.load()) wait_while(busy_, busy);
  }

 private:
  void ring() {
    bell_.fetch_add(1);
    bell_.notify_all();
  }

  void serve() {
    inside = true;
    uint32_t heard = 0;
    for (;;) {
      wait_while(bell_, heard);
      heard = bell_.load();
      if (stopping_) return;
      busy_.fetch_add(1);
      if (Job* job = job_.load(); job && job->seats.fetch_sub(1) > 0) job->work();
      busy_.fetch_sub(1);
      busy_.notify_all();
    }
  }

  std::vector<std::thread> workers_;
  std::atomic<Job*> job_{nullptr};
  std::atomic<uint32_t> bell_{0}, busy_{0};
  std::atomic<bool> stopping_{false};
};

std::mutex use;  // held by the one caller whose job the workers serve
std::unique_ptr<Pool> pool;

// A forked child has the pool's memory but not its threads.
void forget_pool() {
  static_cast<void>(pool.release());
  new (&use) std::mutex;
  inside = false;
}

}  // namespace

void run_in_parallel(int64_t count, int64_t chunk, int threads,
                     const std::function<void(int64_t, int64_t)>& body) {
  if (count <= 0) return;
  chunk = std::max<int64_t>(1, chunk);
  const int64_t ranges = (count + chunk - 1) / chunk;
  const auto helpers = static_cast<int>(std::min<int64_t>(threads, ranges)) - 1;
  if (helpers <= 0 || inside || !use.try_lock()) return body(0, count);
  const std::lock_guard held(use, std::adopt_lock);
  if (!pool) {
    static const int registered = pthread_atfork(nullptr, nullptr, forget_pool);
    static_cast<void>(registered);
    pool = std::make_unique<Pool>();
  }
  Job job{.body = body, .count = count, .chunk = chunk, .seats = helpers};
  pool->run(job);
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace weft
