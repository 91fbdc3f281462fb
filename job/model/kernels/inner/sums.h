// Per-channel sums of many items, combined in the items' order and in double precision.
#pragma once
#include <vector>

#include "memory.h"
#include "table.h"

namespace fashion::VARIANT {

// Every item has rows of `channels` sums of its own: two for mean and variance, or for scale and shift.
class Sums {
 public:
  Sums(int64_t items, int64_t rows, int64_t channels)
      : items_(items), width_(rows * channels), channels_(channels), data_(items * rows * channels) {}

  float* of(int64_t item) { return data_ + item * width_; }
  float* cleared(int64_t item) {
    float* sums = of(item);
    for (int64_t i = 0; i < width_; ++i) sums[i] = 0;
    return sums;
  }

  // The sums of one row for the first `channels` channels.
  void total(int64_t row, int64_t channels, float* out) const {
    std::vector<double> sums(channels, 0.0);
    add(row, channels, sums.data());
    for (int64_t c = 0; c < channels; ++c) out[c] = static_cast<float>(sums[c]);
  }

  // Row 0 holds sums and row 1 sums of squares over `count` values of each of the first `channels` channels.
  void moments(int64_t channels, int64_t count, const Moments& out) const {
    std::vector<double> sums(channels, 0.0), squares(channels, 0.0);
    add(0, channels, sums.data());
    add(1, channels, squares.data());
    for (int64_t c = 0; c < channels; ++c) {
      const double mean = sums[c] / count, variance = squares[c] / count - mean * mean;
      out.mean[c] = static_cast<float>(mean);
      out.variance[c] = static_cast<float>(variance < 0 ? 0 : variance);
    }
  }

 private:
  void add(int64_t row, int64_t channels, double* sums) const {
    for (int64_t item = 0; item < items_; ++item) {
      const float* part = data_ + item * width_ + row * channels_;
      for (int64_t c = 0; c < channels; ++c) sums[c] += part[c];
    }
  }

  int64_t items_, width_, channels_;
  Shared data_;
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace fashion::VARIANT
