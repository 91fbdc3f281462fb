// Depthwise 3×3 convolution, forward and backward. Maps are padded and normalised (or, backward, their gradients formed)
// into a thread's own copy first, so that the loops over pixels have no edges to look for.
#pragma once
#include <algorithm>

#include "sums.h"
#include "vec.h"

namespace fashion::VARIANT {

// A unit of work is a band of rows of one map: as many as fit, with their padding, into this many floats of cache.
constexpr int64_t kBandFloats = 48 * 1024;

struct Bands {
  // `rows` of each map are cut; a copy holds `per_row` floats for each row of the band.
  Bands(int64_t batch, int64_t rows, int64_t per_row)
      : height(std::clamp<int64_t>(kBandFloats / std::max<int64_t>(per_row, 1), 1, rows)),
        per_map(ceil_div(rows, height)),
        units(batch * per_map),
        items(std::min<int64_t>(units, 64)) {}
  // Item i does the units [begin(i), begin(i + 1)).
  int64_t begin(int64_t item) const { return item * units / items; }
  int64_t height, per_map, units, items;
};

// Row h of a map as the convolution sees it, with one column of zeros on either side; all zeros outside the map.
template <class Fill>
inline void padded_row(int64_t h, int64_t height, int64_t width, int64_t channels, float* out, const Fill& fill) {
  if (h < 0 || h >= height) {
    std::fill(out, out + (width + 2) * channels, 0.f);
    return;
  }
  std::fill(out, out + channels, 0.f);
  fill(h, out + channels);
  std::fill(out + (width + 1) * channels, out + (width + 2) * channels, 0.f);
}

// One vector of channels of a band. top: the padded input row above the band's first output row, at its first channel.
template <int Stride>
inline void depthwise_band(const DepthwiseShape& s, const float* top, int64_t rows, const float* kernel, float* y,
                           float* sums, float* squares, int64_t n) {
  const int64_t c = s.channels, pitch = (s.width + 2) * c;
  V weights[9];
  for (int t = 0; t < 9; ++t) weights[t] = load(kernel + t * c, n);
  V sum = load(sums, n), square = load(squares, n);
  for (int64_t o = 0; o < rows; ++o) {
    const float* in = top + o * Stride * pitch;
    for (int64_t u = 0; u < s.out_width; ++u, in += Stride * c, y += c) {
      V total{};
#pragma GCC unroll 3
      for (int r = 0; r < 3; ++r)
#pragma GCC unroll 3
        for (int q = 0; q < 3; ++q) total += load(in + r * pitch + q * c, n) * weights[3 * r + q];
      store(y, total, n);
      sum += total;
      square += total * total;
    }
  }
  store(sums, sum, n);
  store(squares, square, n);
}

inline void depthwise(const DepthwiseShape& s, const Pending& input, const float* kernel, const Moments& output,
                      const Parallel& parallel) {
  const int64_t c = s.channels, pitch = (s.width + 2) * c;
  // With stride 1 the window starts one row above and one column to the left; with stride 2 at the pixel itself.
  const int64_t before = s.stride == 1 ? 1 : 0;
  const Bands bands(s.batch, s.out_height, s.stride * pitch);
  Sums sums(bands.items, 2, c);
  parallel(bands.items, [&](int64_t item) {
    thread_local Scratch scratch;
    float* copy = scratch.get((bands.height * s.stride + 2) * pitch);
    float* total = sums.cleared(item);
    for (int64_t unit = bands.begin(item); unit < bands.begin(item + 1); ++unit) {
      const int64_t map = unit / bands.per_map, first = unit % bands.per_map * bands.height;
      const int64_t rows = std::min(bands.height, s.out_height - first), top = first * s.stride - before;
      for (int64_t h = 0; h < (rows - 1) * s.stride + 3; ++h)
        padded_row(top + h, s.height, s.width, c, copy + h * pitch, [&](int64_t row, float* x) {
          const float* z = input.z + (map * s.height + row) * s.width * c;
          for (int64_t w = 0; w < s.width; ++w)
            for (int64_t i = 0; i < c; i += kLanes) {
              const int64_t n = c - i;
              store(x + w * c + i, relu6(load(z + w * c + i, n) * load(input.scale + i, n) + load(input.shift + i, n)), n);
            }
        });
      float* y = output.y + (map * s.out_height + first) * s.out_width * c;
      for (int64_t i = 0; i < c; i += kLanes)
        (s.stride == 1 ? depthwise_band<1> : depthwise_band<2>)(s, copy + (1 - before) * c + i, rows, kernel + i, y + i,
                                                                total + i, total + c + i, c - i);
    }
  });
  sums.moments(c, s.batch * s.out_height * s.out_width, output);
}

struct ChannelSums {  // of one vector of channels: where shift's, scale's and the nine taps' sums are kept
  float* shift;
  float* scale;
  float* taps;
};

// One pixel of the input gradient: its taps are rows × columns of the output gradient.
struct Pixel {
  V scale, shift, shift_sum, scale_sum;
  V weights[9], taps[9];

  template <int Rows, int Columns>
  inline void step(const float* const (&gradients)[Rows], const int (&row_taps)[Rows], const int64_t (&columns)[Columns],
                   const int (&column_taps)[Columns], const float* z, float* dz, int64_t n) {
    const V value = load(z, n), t = value * scale + shift, x = relu6(t);
    V total{};
#pragma GCC unroll 3
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 3
      for (int q = 0; q < Columns; ++q) {
        const int tap = 3 * row_taps[r] + column_taps[q];
        const V g = load(gradients[r] + columns[q], n);
        total += g * weights[tap];
        taps[tap] += x * g;
      }
    const V g = relu6_gradient(t, total);
    shift_sum += g;
    scale_sum += g * value;
    store(dz, g * scale, n);
  }
};

// Rows [first, first + rows) of the input gradient, one vector of channels. gradients: the padded copy of the output's
// gradient at this vector of channels, whose row 0 is output row `top`.
template <int Stride>
inline void depthwise_gradient_band(const DepthwiseShape& s, const float* gradients, int64_t top, int64_t first,
                                    int64_t rows, const Pending& input, const float* kernel, float* dz,
                                    const ChannelSums& sums, int64_t n) {
  const int64_t c = s.channels, pitch = (s.out_width + 2) * c;
  Pixel pixel{load(input.scale, n), load(input.shift, n), load(sums.shift, n), load(sums.scale, n), {}, {}};
  for (int t = 0; t < 9; ++t) {
    pixel.weights[t] = load(kernel + t * c, n);
    pixel.taps[t] = load(sums.taps + t * c, n);
  }
  const float* z = input.z;
  for (int64_t h = first; h < first + rows; ++h) {
    if constexpr (Stride == 1) {
      // Padded column w + 1 is output column w: tap q of input column w belongs to output column w + 1 - q.
      const float* below = gradients + (h + 1 - top) * pitch;
      for (int64_t w = 0; w < s.width; ++w, z += c, dz += c, below += c)
        pixel.step<3, 3>({below, below - pitch, below - 2 * pitch}, {0, 1, 2}, {2 * c, c, 0}, {0, 1, 2}, z, dz, n);
    } else if (h % 2 == 0) {
      const float* here = gradients + (h / 2 - top) * pitch;
      for (int64_t w = 0; w < s.width; ++w, z += c, dz += c)
        if (w % 2 == 0) {
          pixel.step<2, 2>({here, here - pitch}, {0, 2}, {c, 0}, {0, 2}, z, dz, n);
        } else {
          pixel.step<2, 1>({here, here - pitch}, {0, 2}, {c}, {1}, z, dz, n);
          here += c;
        }
    } else {
      const float* here = gradients + (h / 2 - top) * pitch;
      for (int64_t w = 0; w < s.width; ++w, z += c, dz += c)
        if (w % 2 == 0) {
          pixel.step<1, 2>({here}, {1}, {c, 0}, {0, 2}, z, dz, n);
        } else {
          pixel.step<1, 1>({here}, {1}, {c}, {1}, z, dz, n);
          here += c;
        }
    }
  }
  store(sums.shift, pixel.shift_sum, n);
  store(sums.scale, pixel.scale_sum, n);
  for (int t = 0; t < 9; ++t) store(sums.taps + t * c, pixel.taps[t], n);
}

inline void depthwise_gradient(const DepthwiseShape& s, const Pending& input, const float* kernel,
                               const OutputGradient& output, const PendingGradient& to, float* kernel_gradient,
                               const Parallel& parallel) {
  const int64_t c = s.channels, pitch = (s.out_width + 2) * c;
  const Bands bands(s.batch, s.height, ceil_div((s.width + 2) * c, s.stride));
  Sums sums(bands.items, 11, c);
  parallel(bands.items, [&](int64_t item) {
    thread_local Scratch scratch;
    float* copy = scratch.get((bands.height + 3) * pitch);
    float* own = sums.cleared(item);
    for (int64_t unit = bands.begin(item); unit < bands.begin(item + 1); ++unit) {
      const int64_t map = unit / bands.per_map, first = unit % bands.per_map * bands.height;
      const int64_t rows = std::min(bands.height, s.height - first);
      const int64_t top = s.stride == 1 ? first - 1 : first / 2 - 1;
      const int64_t bottom = s.stride == 1 ? first + rows : (first + rows - 1) / 2;
      for (int64_t h = top; h <= bottom; ++h)
        padded_row(h, s.out_height, s.out_width, c, copy + (h - top) * pitch, [&](int64_t row, float* out) {
          const int64_t at = (map * s.out_height + row) * s.out_width * c;
          for (int64_t w = 0; w < s.out_width * c; w += c)
            for (int64_t i = 0; i < c; i += kLanes) {
              const int64_t n = c - i;
              const V dy = load(output.dy + at + w + i, n), y = load(output.y + at + w + i, n);
              store(out + w + i, dy + load(output.offset + i, n) + load(output.slope + i, n) * y, n);
            }
        });
      const int64_t at = (map * s.height + first) * s.width * c;
      for (int64_t i = 0; i < c; i += kLanes)
        (s.stride == 1 ? depthwise_gradient_band<1> : depthwise_gradient_band<2>)(
            s, copy + i, top, first, rows, {input.z + at + i, input.scale + i, input.shift + i}, kernel + i,
            to.z + at + i, {own + i, own + c + i, own + 2 * c + i}, c - i);
    }
  });
  sums.total(0, c, to.shift);
  sums.total(1, c, to.scale);
  for (int t = 0; t < 9; ++t) sums.total(2 + t, c, kernel_gradient + t * c);
}

}  // namespace fashion::VARIANT
