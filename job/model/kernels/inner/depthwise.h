// Depthwise 3×3 convolution, forward and backward. Maps are padded and normalised (or, backward, their gradients formed)
// into a thread's own copy first, so that the loops over pixels have no edges to look for.
#pragma once
#include <algorithm>

#include "panels.h"

namespace fashion::VARIANT {

// A unit of work is a band of rows of one map: as many as fit, with their padding, into this many floats of cache.
constexpr int64_t kBandFloats = 48 * 1024;

// How maps of `rows` rows of `width` pixels are cut into units, and units into items. per_row: floats of a row's copy.
struct Bands {
  Bands(int64_t batch, int64_t rows, int64_t width, int64_t per_row, int64_t channels)
      : height(std::clamp<int64_t>(kBandFloats / std::max<int64_t>(per_row, 1), 1, rows)),
        per_map(ceil_div(rows, height)),
        units(batch * per_map),
        // Many items balance better; but each has sums of its own to clear and to add up.
        items(std::min(units, std::max(std::clamp<int64_t>(16 * 1024 / channels, 16, 64),
                                       ceil_div(batch * rows * width, kMostSummed)))) {}
  // Item i does the units [begin(i), begin(i + 1)).
  int64_t begin(int64_t item) const { return item * units / items; }
  int64_t height, per_map, units, items;
};

// Padded rows of a map: one pixel of zeros on either side, and whole rows of zeros above and below the map.
struct Copy {
  Copy(int64_t width, int64_t channels)
      : width(width),
        // Pixels 2^k floats apart would share a few sets of the cache.
        pixel(channels % 256 == 0 ? channels + 16 : channels),
        pitch((width + 2) * pixel) {}

  // Rows [top, bottom] of a map of `height` rows; fill(h, w, out) writes the channels of one pixel. The zeros around a
  // whole map are the same for the next one: `again` leaves them as they are.
  template <class Fill>
  void rows(float* data, int64_t top, int64_t bottom, int64_t height, bool again, const Fill& fill) const {
    for (int64_t h = top; h <= bottom; ++h, data += pitch) {
      const bool inside = h >= 0 && h < height;
      if (!again) {
        std::fill_n(data, inside ? pixel : pitch, 0.f);
        std::fill_n(data + pitch - pixel, pixel, 0.f);
      }
      for (int64_t w = 0; inside && w < width; ++w) fill(h, w, data + (w + 1) * pixel);
    }
  }

  int64_t width, pixel, pitch;
};

// Asks for `count` floats before they are needed. The loops below go along one vector of channels at a time, in steps too
// large for the processor to guess; here it gets whole stretches. To: 1 for what will be written.
template <int To>
inline void fetch(const float* data, int64_t count) {
  for (int64_t i = 0; i < count; i += 16) __builtin_prefetch(data + i, To, 2);
}

// One vector of channels of a band. top: the padded input row above the band's first output row, at its first channel.
// sums: pivot, sum and sum of squares, as Sums::moments takes them; the pivot is set where the band is an item's first.
template <int Stride>
inline void depthwise_band(const DepthwiseShape& s, const Copy& copy, const float* top, int64_t rows,
                           const float* kernel, float* y, float* sums, bool first, int64_t n) {
  const int64_t c = s.channels, pixel = copy.pixel, pitch = copy.pitch;
  V weights[9];
  for (int t = 0; t < 9; ++t) weights[t] = load(kernel + t * c, n);
  const auto window = [&](const float* in) {
    V total{};
#pragma GCC unroll 3
    for (int r = 0; r < 3; ++r)
#pragma GCC unroll 3
      for (int q = 0; q < 3; ++q) total += load(in + r * pitch + q * pixel, n) * weights[3 * r + q];
    return total;
  };
  // From the middle of the band: at the map's edge a window has padding in it, and is unlike the rest.
  const V pivot = first ? window(top + (rows / 2 * pitch + s.out_width / 2 * pixel) * Stride) : load(sums, n);
  V sum = load(sums + c, n), square = load(sums + 2 * c, n);
  for (int64_t o = 0; o < rows; ++o) {
    const float* in = top + o * Stride * pitch;
    for (int64_t u = 0; u < s.out_width; ++u, in += Stride * pixel, y += c) {
      const V total = window(in), distance = total - pivot;
      store(y, total, n);
      sum += distance;
      square += distance * distance;
    }
  }
  store(sums, pivot, n);
  store(sums + c, sum, n);
  store(sums + 2 * c, square, n);
}

inline void depthwise(const DepthwiseShape& s, const Pending& input, const float* kernel, const Moments& output,
                      const Parallel& parallel) {
  const int64_t c = s.channels;
  const Copy copy(s.width, c);
  // With stride 1 the window starts one row above and one column to the left; with stride 2 at the pixel itself.
  const int64_t before = s.stride == 1 ? 1 : 0;
  const Bands bands(s.batch, s.out_height, s.out_width, s.stride * copy.pitch, c);
  Sums sums(bands.items, 3, c);
  parallel(bands.items, [&](int64_t item) {
    thread_local Scratch scratch;
    float* data = scratch.get((bands.height * s.stride + 2) * copy.pitch);
    float* own = sums.cleared(item);
    for (int64_t unit = bands.begin(item); unit < bands.begin(item + 1); ++unit) {
      const bool first_unit = unit == bands.begin(item);
      const int64_t map = unit / bands.per_map, first = unit % bands.per_map * bands.height;
      const int64_t rows = std::min(bands.height, s.out_height - first), top = first * s.stride - before;
      const float* z = input.z + map * s.height * s.width * c;
      copy.rows(data, top, top + (rows - 1) * s.stride + 2, s.height, bands.per_map == 1 && !first_unit,
                [&](int64_t h, int64_t w, float* x) {
                  const float* from = z + (h * s.width + w) * c;
                  for (int64_t i = 0; i < c; i += kLanes) {
                    const int64_t n = c - i;
                    store(x + i, relu6(load(from + i, n) * load(input.scale + i, n) + load(input.shift + i, n)), n);
                  }
                });
      float* y = output.y + (map * s.out_height + first) * s.out_width * c;
      fetch<1>(y, rows * s.out_width * c);
      for (int64_t i = 0; i < c; i += kLanes)
        (s.stride == 1 ? depthwise_band<1> : depthwise_band<2>)(s, copy, data + (1 - before) * copy.pixel + i, rows,
                                                                kernel + i, y + i, own + i, first_unit, c - i);
    }
  });
  sums.moments(
      c,
      [&](int64_t item) {
        int64_t rows = 0;
        for (int64_t unit = bands.begin(item); unit < bands.begin(item + 1); ++unit)
          rows += std::min(bands.height, s.out_height - unit % bands.per_map * bands.height);
        return rows * s.out_width;
      },
      output);
}

// One vector of channels of the backward pass: what is the same for all pixels, and what is summed over them.
struct Pixel {
  V scale, shift, shift_sum, scale_sum;
  V weights[9], taps[9];

  // One pixel of the input gradient: its taps are rows × columns of the output gradient.
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
// gradient at this vector of channels, whose row 0 is output row `top`. sums: of shift, of scale, of the nine taps.
template <int Stride>
inline void depthwise_gradient_band(const DepthwiseShape& s, const Copy& copy, const float* gradients, int64_t top,
                                    int64_t first, int64_t rows, const Pending& input, const float* kernel, float* dz,
                                    float* sums, int64_t n) {
  const int64_t c = s.channels, pixel_size = copy.pixel, pitch = copy.pitch;
  Pixel pixel{load(input.scale, n), load(input.shift, n), load(sums, n), load(sums + c, n), {}, {}};
  for (int t = 0; t < 9; ++t) {
    pixel.weights[t] = load(kernel + t * c, n);
    pixel.taps[t] = load(sums + (2 + t) * c, n);
  }
  const float* z = input.z;
  for (int64_t h = first; h < first + rows; ++h) {
    if constexpr (Stride == 1) {
      // Padded column w + 1 is output column w: tap q of input column w belongs to output column w + 1 - q.
      const float* below = gradients + (h + 1 - top) * pitch;
      for (int64_t w = 0; w < s.width; ++w, z += c, dz += c, below += pixel_size)
        pixel.step<3, 3>({below, below - pitch, below - 2 * pitch}, {0, 1, 2}, {2 * pixel_size, pixel_size, 0}, {0, 1, 2},
                         z, dz, n);
    } else if (h % 2 == 0) {
      const float* here = gradients + (h / 2 - top) * pitch;
      for (int64_t w = 0; w < s.width; ++w, z += c, dz += c)
        if (w % 2 == 0) {
          pixel.step<2, 2>({here, here - pitch}, {0, 2}, {pixel_size, 0}, {0, 2}, z, dz, n);
        } else {
          pixel.step<2, 1>({here, here - pitch}, {0, 2}, {pixel_size}, {1}, z, dz, n);
          here += pixel_size;
        }
    } else {
      const float* here = gradients + (h / 2 - top) * pitch;
      for (int64_t w = 0; w < s.width; ++w, z += c, dz += c)
        if (w % 2 == 0) {
          pixel.step<1, 2>({here}, {1}, {pixel_size, 0}, {0, 2}, z, dz, n);
        } else {
          pixel.step<1, 1>({here}, {1}, {pixel_size}, {1}, z, dz, n);
          here += pixel_size;
        }
    }
  }
  store(sums, pixel.shift_sum, n);
  store(sums + c, pixel.scale_sum, n);
  for (int t = 0; t < 9; ++t) store(sums + (2 + t) * c, pixel.taps[t], n);
}

inline void depthwise_gradient(const DepthwiseShape& s, const Pending& input, const float* kernel,
                               const OutputGradient& output, const PendingGradient& to, float* kernel_gradient,
                               const Parallel& parallel) {
  const int64_t c = s.channels;
  const Copy copy(s.out_width, c);
  const Bands bands(s.batch, s.height, s.width, ceil_div(copy.pitch, s.stride), c);
  Sums sums(bands.items, 11, c);
  parallel(bands.items, [&](int64_t item) {
    thread_local Scratch scratch;
    float* data = scratch.get((bands.height + 3) * copy.pitch);
    float* own = sums.cleared(item);
    for (int64_t unit = bands.begin(item); unit < bands.begin(item + 1); ++unit) {
      const int64_t map = unit / bands.per_map, first = unit % bands.per_map * bands.height;
      const int64_t rows = std::min(bands.height, s.height - first);
      const int64_t top = s.stride == 1 ? first - 1 : first / 2 - 1;
      const int64_t bottom = s.stride == 1 ? first + rows : (first + rows - 1) / 2;
      const int64_t at = map * s.out_height * s.out_width * c;
      copy.rows(data, top, bottom, s.out_height, bands.per_map == 1 && unit > bands.begin(item),
                [&](int64_t h, int64_t w, float* out) {
                  const int64_t from = at + (h * s.out_width + w) * c;
                  for (int64_t i = 0; i < c; i += kLanes) {
                    const int64_t n = c - i;
                    store(out + i, output_gradient(output, load(output.dy + from + i, n), load(output.y + from + i, n), i, n), n);
                  }
                });
      const int64_t begin = (map * s.height + first) * s.width * c;
      fetch<0>(input.z + begin, rows * s.width * c);
      fetch<1>(to.z + begin, rows * s.width * c);
      for (int64_t i = 0; i < c; i += kLanes)
        (s.stride == 1 ? depthwise_gradient_band<1> : depthwise_gradient_band<2>)(
            s, copy, data + i, top, first, rows, {input.z + begin + i, input.scale + i, input.shift + i}, kernel + i,
            to.z + begin + i, own + i, c - i);
    }
  });
  sums.total(0, c, to.shift);
  sums.total(1, c, to.scale);
  for (int t = 0; t < 9; ++t) sums.total(2 + t, c, kernel_gradient + t * c);
}

}  // namespace fashion::VARIANT
