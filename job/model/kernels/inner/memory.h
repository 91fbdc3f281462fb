// Buffers of the kernels: aligned to cache lines, uninitialised.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <new>

namespace fashion::VARIANT {

inline float* allocate(int64_t floats) {
  const size_t bytes = (static_cast<size_t>(floats > 0 ? floats : 1) * 4 + 63) / 64 * 64;
  void* memory = std::aligned_alloc(64, bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return static_cast<float*>(memory);
}

// A buffer shared by all items of one operation.
class Shared {
 public:
  explicit Shared(int64_t floats) : data_(allocate(floats)) {}
  ~Shared() { std::free(data_); }
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;
  operator float*() const { return data_; }

 private:
  float* data_;
};

// A thread's own working memory, kept from one item to the next: it stays warm in its cache.
class Scratch {
 public:
  ~Scratch() { std::free(data_); }
  float* get(int64_t floats) {
    if (floats > size_) {
      std::free(data_);
      data_ = nullptr;
      size_ = 0;
      data_ = allocate(floats);
      size_ = floats;
    }
    return data_;
  }

 private:
  float* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace fashion::VARIANT
