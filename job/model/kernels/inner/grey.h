// The first convolution: 3×3, stride 2, over one grey plane, forward and backward.
#pragma once
#include <algorithm>

#include "panels.h"

namespace fashion::VARIANT {

constexpr int kGreyVectors = kLanes == 16 ? 2 : 1;  // channels worked on together: nine taps for each stay in registers
constexpr int64_t kGreyChannels = kGreyVectors * kLanes;

struct GreyItems {
  explicit GreyItems(const GreyShape& s)
      : rows(s.batch * s.out_height),
        items(std::min(rows, std::max<int64_t>(64, ceil_div(rows * s.out_width, kMostSummed)))) {}
  int64_t begin(int64_t item) const { return item * rows / items; }
  int64_t rows, items;
};

// The three image rows below output row o, with zeros around them.
inline void grey_rows(const GreyShape& s, const float* image, int64_t map, int64_t o, float* copy, int64_t pitch) {
  for (int64_t r = 0; r < 3; ++r) {
    float* row = copy + r * pitch;
    std::fill(row, row + pitch, 0.f);
    const int64_t h = 2 * o + r - s.before_y;
    if (h >= 0 && h < s.height) std::copy_n(image + (map * s.height + h) * s.width, s.width, row + s.before_x);
  }
}

inline void grey(const GreyShape& s, const float* image, const float* kernel, const Moments& output,
                 const Parallel& parallel) {
  const int64_t c = s.channels, pitch = 2 * s.out_width + 2;
  const GreyItems cut(s);
  Sums sums(cut.items, 3, c);
  parallel(cut.items, [&](int64_t item) {
    thread_local Scratch scratch;
    float* copy = scratch.get(3 * pitch);
    float* total = sums.cleared(item);
    for (int64_t row = cut.begin(item); row < cut.begin(item + 1); ++row) {
      grey_rows(s, image, row / s.out_height, row % s.out_height, copy, pitch);
      for (int64_t first = 0; first < c; first += kGreyChannels) {
        V weights[9][kGreyVectors], pivot[kGreyVectors], sum[kGreyVectors], square[kGreyVectors];
        bool fresh = row == cut.begin(item);
        int64_t n[kGreyVectors];
        for (int j = 0; j < kGreyVectors; ++j) {
          const int64_t at = first + j * kLanes;
          n[j] = std::max<int64_t>(0, c - at);
          for (int t = 0; t < 9; ++t) weights[t][j] = n[j] ? load(kernel + t * c + at, n[j]) : V{};
          pivot[j] = n[j] ? load(total + at, n[j]) : V{};
          sum[j] = n[j] ? load(total + c + at, n[j]) : V{};
          square[j] = n[j] ? load(total + 2 * c + at, n[j]) : V{};
        }
        float* y = output.y + row * s.out_width * c + first;
        for (int64_t u = 0; u < s.out_width; ++u, y += c) {
          V value[kGreyVectors]{};
#pragma GCC unroll 9
          for (int t = 0; t < 9; ++t) {
            const V pixel = splat(copy[t / 3 * pitch + 2 * u + t % 3]);
            for (int j = 0; j < kGreyVectors; ++j) value[j] += pixel * weights[t][j];
          }
          for (int j = 0; j < kGreyVectors; ++j) {
            if (fresh) pivot[j] = value[j];
            const V distance = value[j] - pivot[j];
            sum[j] += distance;
            square[j] += distance * distance;
            if (n[j]) store(y + j * kLanes, value[j], n[j]);
          }
          fresh = false;
        }
        for (int j = 0; j < kGreyVectors; ++j)
          if (n[j]) {
            store(total + first + j * kLanes, pivot[j], n[j]);
            store(total + c + first + j * kLanes, sum[j], n[j]);
            store(total + 2 * c + first + j * kLanes, square[j], n[j]);
          }
      }
    }
  });
  const auto count = [&](int64_t item) { return (cut.begin(item + 1) - cut.begin(item)) * s.out_width; };
  sums.moments(c, count, output);
}

inline void grey_gradient(const GreyShape& s, const float* image, const OutputGradient& output, float* kernel_gradient,
                          const Parallel& parallel) {
  const int64_t c = s.channels, pitch = 2 * s.out_width + 2;
  const GreyItems cut(s);
  Sums sums(cut.items, 9, c);
  parallel(cut.items, [&](int64_t item) {
    thread_local Scratch scratch;
    float* copy = scratch.get(3 * pitch);
    float* total = sums.cleared(item);
    for (int64_t row = cut.begin(item); row < cut.begin(item + 1); ++row) {
      grey_rows(s, image, row / s.out_height, row % s.out_height, copy, pitch);
      for (int64_t first = 0; first < c; first += kGreyChannels) {
        V taps[9][kGreyVectors];
        int64_t n[kGreyVectors];
        for (int j = 0; j < kGreyVectors; ++j) {
          const int64_t at = first + j * kLanes;
          n[j] = std::max<int64_t>(0, c - at);
          for (int t = 0; t < 9; ++t) taps[t][j] = n[j] ? load(total + t * c + at, n[j]) : V{};
        }
        int64_t at = row * s.out_width * c + first;
        for (int64_t u = 0; u < s.out_width; ++u, at += c) {
          V g[kGreyVectors]{};
          for (int j = 0; j < kGreyVectors; ++j)
            if (n[j]) {
              const int64_t lane = at + j * kLanes;
              g[j] = output_gradient(output, load(output.dy + lane, n[j]), load(output.y + lane, n[j]),
                                     first + j * kLanes, n[j]);
            }
#pragma GCC unroll 9
          for (int t = 0; t < 9; ++t) {
            const V pixel = splat(copy[t / 3 * pitch + 2 * u + t % 3]);
            for (int j = 0; j < kGreyVectors; ++j) taps[t][j] += pixel * g[j];
          }
        }
        for (int j = 0; j < kGreyVectors; ++j)
          for (int t = 0; t < 9 && n[j]; ++t) store(total + t * c + first + j * kLanes, taps[t][j], n[j]);
      }
    }
  });
  for (int t = 0; t < 9; ++t) sums.total(t, c, kernel_gradient + t * c);
}

}  // namespace fashion::VARIANT
