// One operation's items, shared out among threads.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <new>

#include "table.h"

namespace fashion {

// Items are handed out one by one, to the calling thread and to helpers from a pool. A helper that starts after the last
// item was handed out touches nothing but this, so that the caller need not wait for it.
class Round {
 public:
  Round(int64_t count, const Item* item) : count_(count), item_(item) {}

  // What each helper calls.
  void work() {
    int64_t finished = 0;
    for (int64_t i = next_.fetch_add(1); i < count_; i = next_.fetch_add(1), ++finished) try_one(i);
    if (finished == 0 || done_.fetch_add(finished) + finished < count_) return;
    std::lock_guard<std::mutex> lock(mutex_);
    all_done_.notify_one();
  }

  // What the caller calls: works too, and returns when all items are done. Throws bad_alloc if one of them found no memory.
  void finish() {
    work();
    for (int spin = 0; spin < 2000 && done_.load() < count_; ++spin) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
    std::unique_lock<std::mutex> lock(mutex_);
    all_done_.wait(lock, [&] { return done_.load() >= count_; });
    if (exhausted_.load()) throw std::bad_alloc();
  }

 private:
  void try_one(int64_t i) {
    try {
      (*item_)(i);
    } catch (const std::bad_alloc&) {  // a helper has nobody who would catch it
      exhausted_ = true;
    }
  }

  const int64_t count_;
  const Item* const item_;
  std::atomic<int64_t> next_{0}, done_{0};
  std::atomic<bool> exhausted_{false};
  std::mutex mutex_;
  std::condition_variable all_done_;
};

}  // namespace fashion
