// Per-channel sums of many items, combined in the items' order and in double precision.
#pragma once
#include <vector>

#include "memory.h"
#include "table.h"

namespace fashion::VARIANT {

// The most values of a channel that are added up in float32 before their sum goes on in double. Those of a uniform
// background are equal, and all rounded the same way: by up to one part in 2^24 of the sum so far.
constexpr int64_t kMostSummed = 4096;

// Every item has rows of `channels` sums of its own.
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
    for (int64_t item = 0; item < items_; ++item) {
      const float* part = data_ + item * width_ + row * channels_;
      for (int64_t c = 0; c < channels; ++c) sums[c] += part[c];
    }
    for (int64_t c = 0; c < channels; ++c) out[c] = static_cast<float>(sums[c]);
  }

  // Mean and variance of the first `channels` channels. Row 0 holds each item's pivot (one of its own values), row 1 its
  // sums and row 2 its sums of squares, of distances from the pivot: squares of the values themselves would lose the
  // digits of a small variance about a large mean. counts: values of each item.
  template <class Counts>
  void moments(int64_t channels, const Counts& counts, const Moments& out) const {
    std::vector<double> mean(channels, 0.0), squares(channels, 0.0);
    double seen = 0;
    for (int64_t item = 0; item < items_; ++item) {
      const float* pivot = data_ + item * width_;
      const double count = counts(item), share = count / (seen + count);
      for (int64_t c = 0; c < channels; ++c) {
        const double sum = pivot[channels_ + c], own = pivot[c] + sum / count, distance = own - mean[c];
        mean[c] += distance * share;
        squares[c] += pivot[2 * channels_ + c] - sum * sum / count + distance * distance * seen * share;
      }
      seen += count;
    }
    for (int64_t c = 0; c < channels; ++c) {
      out.mean[c] = static_cast<float>(mean[c]);
      out.variance[c] = static_cast<float>(squares[c] < 0 ? 0 : squares[c] / seen);
    }
  }

 private:
  int64_t items_, width_, channels_;
  Shared data_;
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace fashion::VARIANT
