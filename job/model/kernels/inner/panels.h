// Copies of matrices in the panels that tiles read.
#pragma once
#include "sums.h"
#include "tile.h"

namespace fashion::VARIANT {

// `rows` rows of a matrix with `columns` columns, in panels. One cache line more than needed lies between panels: else
// the pieces of a row would fall into the same few sets of the cache.
struct Panels {
  Panels(float* data, int64_t rows) : data(data), stride(rows * kTileColumns + 16) {}
  static int64_t size(int64_t rows, int64_t columns) {
    return ceil_div(columns, kTileColumns) * (rows * kTileColumns + 16);
  }
  float* at(int64_t row, int64_t panel) const { return data + panel * stride + row * kTileColumns; }
  float* data;
  int64_t stride;
};

// A row of relu6(z · scale + shift), zeros beyond its last channel.
inline void normalise_row(const Pending& input, int64_t row, int64_t channels, const Panels& to, int64_t to_row) {
  const float* z = input.z + row * channels;
  float* out = to.at(to_row, 0);
  for (int64_t c = 0; c < channels; c += kTileColumns, out += to.stride)
    for (int j = 0; j < kTileVectors; ++j) {
      const int64_t at = c + j * kLanes, n = channels - at;
      store(out + j * kLanes, n > 0 ? relu6(load(z + at, n) * load(input.scale + at, n) + load(input.shift + at, n)) : V{});
    }
}

// The output's whole gradient from its parts, at the channels [c, c + n).
inline V output_gradient(const OutputGradient& g, V dy, V y, int64_t c, int64_t n) {
  return dy + load(g.offset + c, n) + load(g.slope + c, n) * (y - load(g.mean + c, n));
}

// A row of it.
inline void output_gradient_row(const OutputGradient& g, int64_t row, int64_t channels, const Panels& to, int64_t to_row) {
  const float* y = g.y + row * channels;
  const float* dy = g.dy + row * channels;
  float* out = to.at(to_row, 0);
  for (int64_t c = 0; c < channels; c += kTileColumns, out += to.stride)
    for (int j = 0; j < kTileVectors; ++j) {
      const int64_t at = c + j * kLanes, n = channels - at;
      store(out + j * kLanes, n > 0 ? output_gradient(g, load(dy + at, n), load(y + at, n), at, n) : V{});
    }
}

// One panel of a kernel [in, out]: `in` rows of its columns.
inline void pack_panel(const float* kernel, int64_t in, int64_t out, int64_t panel, float* packed) {
  const int64_t first = panel * kTileColumns;
  for (int64_t k = 0; k < in; ++k, packed += kTileColumns) {
    const float* row = kernel + k * out + first;
    // The kernel's rows lie too far apart for the processor to guess. A number, since it may be no address of the array.
    __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(row) + 24 * out * sizeof(float)));
    for (int j = 0; j < kTileVectors; ++j) {
      const int64_t n = out - first - j * kLanes;
      store(packed + j * kLanes, n > 0 ? load(row + j * kLanes, n) : V{});
    }
  }
}

// The lanes of a and b by turns: first those of the lower halves, then those of the upper ones.
inline void interleave(V a, V b, V* low, V* high) {
  typedef int32_t Lanes __attribute__((vector_size(4 * kLanes)));
  Lanes lower, upper;
  for (int i = 0; i < kLanes; ++i) {
    lower[i] = i / 2 + i % 2 * kLanes;
    upper[i] = lower[i] + kLanes / 2;
  }
  *low = __builtin_shuffle(a, b, lower);
  *high = __builtin_shuffle(a, b, upper);
}

// A square of lanes, its rows becoming its columns.
inline void transpose(V* block) {
  V turned[kLanes];
  for (int width = kLanes; width > 1; width /= 2) {
    for (int i = 0; i < kLanes / 2; ++i) interleave(block[i], block[i + kLanes / 2], &turned[2 * i], &turned[2 * i + 1]);
    std::copy_n(turned, kLanes, block);
  }
}

// One panel of the transposed kernel [out, in]: `out` rows of kTileColumns rows of the kernel.
inline void pack_transposed(const float* kernel, int64_t in, int64_t out, int64_t panel, float* packed) {
  for (int j = 0; j < kTileVectors; ++j)
    for (int64_t c = 0; c < out; c += kLanes) {
      V block[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        const int64_t k = panel * kTileColumns + j * kLanes + i;
        block[i] = k < in ? load(kernel + k * out + c, out - c) : V{};
      }
      transpose(block);
      for (int64_t i = 0; i < std::min<int64_t>(kLanes, out - c); ++i)
        store(packed + (c + i) * kTileColumns + j * kLanes, block[i]);
    }
}

}  // namespace fashion::VARIANT
