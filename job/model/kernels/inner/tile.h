// The innermost product: a tile of the result held in registers while it runs along the summed dimension.
#pragma once
#include <algorithm>

#include "vec.h"

namespace fashion::VARIANT {

// Rows by vectors of a tile: 24 of AVX-512's 32 registers, 12 of the 16 elsewhere, hold sums.
constexpr int kTileRows = kLanes == 16 ? 12 : 6;
constexpr int kTileVectors = 2;
constexpr int64_t kTileColumns = kTileVectors * kLanes;

// out[i][j] (+)= Σ_k a(i, k) · b[k][j] for Rows rows and one tile of columns; b's rows lie ldb apart.
// Across: a(i, k) = a[i + k · lda], the transposed operand; else a[i · lda + k].
template <int Rows, bool Across, bool Add>
inline void tile_of(int64_t depth, const float* a, int64_t lda, const float* b, int64_t ldb, float* out, int64_t ldo) {
  V sums[Rows][kTileVectors];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kTileVectors; ++j) sums[i][j] = Add ? load(out + i * ldo + j * kLanes) : V{};
  for (int64_t k = 0; k < depth; ++k) {
    V right[kTileVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kTileVectors; ++j) right[j] = load(b + j * kLanes);
    const float* row = a;
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const V left = splat(Across ? a[i] : *row);
      row += lda;
#pragma GCC unroll 4
      for (int j = 0; j < kTileVectors; ++j) sums[i][j] += left * right[j];
    }
    a += Across ? lda : 1;
    b += ldb;
  }
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kTileVectors; ++j) store(out + i * ldo + j * kLanes, sums[i][j]);
}

// The same for a number of rows known only at run time (1 … kTileRows).
template <bool Across, bool Add>
inline void tile(int64_t rows, int64_t depth, const float* a, int64_t lda, const float* b, int64_t ldb, float* out,
                 int64_t ldo) {
  switch (rows) {
#define FASHION_ROWS(N) \
  case N:               \
    return tile_of<(N < kTileRows ? N : kTileRows), Across, Add>(depth, a, lda, b, ldb, out, ldo);
    FASHION_ROWS(1)
    FASHION_ROWS(2)
    FASHION_ROWS(3)
    FASHION_ROWS(4)
    FASHION_ROWS(5)
    FASHION_ROWS(6)
    FASHION_ROWS(7)
    FASHION_ROWS(8)
    FASHION_ROWS(9)
    FASHION_ROWS(10)
    FASHION_ROWS(11)
    FASHION_ROWS(12)
#undef FASHION_ROWS
  }
}

}  // namespace fashion::VARIANT
