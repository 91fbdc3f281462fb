// Products of squares of 32×32 bfloat16, added up in float32: by AMX's tiles, or by AVX-512's dot products of pairs.
//
// Both multiply pairs of values that follow each other along the summed dimension: in a left operand they lie side by side,
// in a right one the values of two rows take turns.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "vec.h"

namespace fashion::VARIANT {

typedef uint16_t Half;  // the bits of a bfloat16

constexpr int64_t kSide = 32;  // of a square
constexpr int64_t kSquare = kSide * kSide;

// `multiply<Add>`: a square of out [32 rows, `stride` floats apart], or what is added to it: Σ over `squares` of left · right.
#if defined(__AMX_BF16__)

// gcc's intrinsics for tiles don't say which memory they read and write: what lies before must be done, nothing later begun.
inline void in_memory() { asm volatile("" ::: "memory"); }

// The thread's tile registers in our shape (16 rows of 64 bytes), and as they were afterwards: oneDNN has its own idea of them.
class Tiles {
 public:
  Tiles() {
    _tile_storeconfig(before_);
    in_memory();
    alignas(64) uint8_t ours[64] = {1};  // palette 1
    for (int tile = 0; tile < 8; ++tile) {
      ours[16 + 2 * tile] = 64;  // bytes of a row
      ours[48 + tile] = 16;      // rows
    }
    in_memory();
    _tile_loadconfig(ours);
  }
  ~Tiles() { before_[0] ? _tile_loadconfig(before_) : _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

 private:
  alignas(64) uint8_t before_[64];
};

template <bool Add>
inline void multiply(int64_t squares, const Half* left, int64_t left_step, const Half* right, float* out, int64_t stride) {
  float* const lower = out + 16 * stride;
  in_memory();
  if constexpr (Add) {
    _tile_loadd(0, out, 4 * stride);
    _tile_loadd(1, out + 16, 4 * stride);
    _tile_loadd(2, lower, 4 * stride);
    _tile_loadd(3, lower + 16, 4 * stride);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (; squares > 0; --squares, left += left_step, right += kSquare) {
    _tile_loadd(4, left, 64);
    _tile_loadd(6, right, 128);
    _tile_loadd(7, right + 32, 128);
    _tile_loadd(5, left + kSquare / 2, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, out, 4 * stride);
  _tile_stored(1, out + 16, 4 * stride);
  _tile_stored(2, lower, 4 * stride);
  _tile_stored(3, lower + 16, 4 * stride);
  in_memory();
}

#else

class Tiles {
 public:
  Tiles() {}  // none to set up
};

template <bool Add>
inline void multiply(int64_t squares, const Half* left, int64_t left_step, const Half* right, float* out, int64_t stride) {
  constexpr int64_t kRows = 8;  // whose sums are held in registers
  for (int64_t row = 0; row < kSide; row += kRows, left += kRows * kSide, out += kRows * stride) {
    __m512 sums[kRows][2];
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) sums[i][j] = Add ? _mm512_loadu_ps(out + i * stride + 16 * j) : _mm512_setzero_ps();
    const Half *a = left, *b = right;
    for (int64_t square = 0; square < squares; ++square, a += left_step)
      for (int64_t k = 0; k < kSide; k += 2, b += 2 * kSide) {
        const __m512bh low = (__m512bh)_mm512_loadu_si512(b), high = (__m512bh)_mm512_loadu_si512(b + kSide);
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i) {
          int32_t pair;
          std::memcpy(&pair, a + i * kSide + k, sizeof pair);
          const __m512bh value = (__m512bh)_mm512_set1_epi32(pair);
          sums[i][0] = _mm512_dpbf16_ps(sums[i][0], value, low);
          sums[i][1] = _mm512_dpbf16_ps(sums[i][1], value, high);
        }
      }
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) _mm512_storeu_ps(out + i * stride + 16 * j, sums[i][j]);
  }
}

#endif

}  // namespace fashion::VARIANT
