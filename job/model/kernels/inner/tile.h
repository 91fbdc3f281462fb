// The innermost product: a tile of the result held in registers while it runs along the summed dimension.
//
// Operands lie in panels: kTileColumns columns of a matrix, row after row. A tile then reads both of them in one forward
// stream, at distances known to the compiler, and no two rows fall into the same few sets of the cache.
#pragma once
#include <algorithm>
#include <type_traits>

#include "vec.h"

namespace fashion::VARIANT {

// Rows by vectors of a tile: 24 of AVX-512's 32 registers, 12 of the 16 elsewhere, hold sums.
constexpr int kTileRows = kLanes == 16 ? 12 : 6;
constexpr int kTileVectors = 2;
constexpr int64_t kTileColumns = kTileVectors * kLanes;

template <int Rows>
struct Tile {
  V sums[Rows][kTileVectors];

  void clear() {
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < kTileVectors; ++j) sums[i][j] = V{};
  }
  void read(const float* from, int64_t stride) {
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < kTileVectors; ++j) sums[i][j] = load(from + i * stride + j * kLanes);
  }
  void write(float* to, int64_t stride) const {
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < kTileVectors; ++j) store(to + i * stride + j * kLanes, sums[i][j]);
  }
  // sums[i][·] += left[i · Stride] · right[·]
  template <int Stride>
  void step(const float* left, const float* right) {
    V row[kTileVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kTileVectors; ++j) row[j] = load(right + j * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const V value = splat(left[i * Stride]);
#pragma GCC unroll 4
      for (int j = 0; j < kTileVectors; ++j) sums[i][j] += value * row[j];
    }
  }
};

// out[i][·] = Σ_k a(i, k) · b[k][·]: a in panels of k, `panel` floats apart; b one panel.
template <int Rows>
inline void tile_along(int64_t depth, const float* a, int64_t panel, const float* b, float* out) {
  Tile<Rows> tile;
  tile.clear();
  for (; depth > 0; depth -= kTileColumns, a += panel) {
    const int64_t columns = std::min(depth, kTileColumns);
    for (int64_t k = 0; k < columns; ++k, b += kTileColumns) tile.template step<kTileColumns>(a + k, b);
  }
  tile.write(out, kTileColumns);
}

// out[i][·] += Σ_k a[k][i] · b[k][·]: one panel each.
template <int Rows>
inline void tile_across(int64_t depth, const float* a, const float* b, float* out, int64_t stride) {
  Tile<Rows> tile;
  tile.read(out, stride);
  for (int64_t k = 0; k < depth; ++k, a += kTileColumns, b += kTileColumns) tile.template step<1>(a, b);
  tile.write(out, stride);
}

// Calls f<Rows>() for a number of rows known only at run time (1 … kTileRows).
template <int Rows = kTileRows, class F>
inline void with_rows(int64_t rows, const F& f) {
  if constexpr (Rows > 1)
    if (rows < Rows) return with_rows<Rows - 1>(rows, f);
  f(std::integral_constant<int, Rows>());
}

}  // namespace fashion::VARIANT
