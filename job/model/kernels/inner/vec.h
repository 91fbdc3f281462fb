// One vector of floats, as wide as the processor that this file is compiled for. Free of TensorFlow.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace fashion::VARIANT {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float V __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

inline V load(const float* p) { return *reinterpret_cast<const V*>(p); }
inline void store(float* p, V v) { *reinterpret_cast<V*>(p) = v; }
inline V splat(float x) { return x - V{}; }  // x - 0 keeps -0.0, which x + 0 would not

// The first n lanes only (0 < n <= kLanes): nothing beyond them is touched, so that any channel count works.
inline V load(const float* p, int64_t n) {
  if (n >= kLanes) return load(p);
#if defined(__AVX512F__)
  return (V)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
#else
  V v{};
  std::memcpy(&v, p, 4 * n);
  return v;
#endif
}

inline void store(float* p, V v, int64_t n) {
  if (n >= kLanes) return store(p, v);
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), (__m512)v);
#else
  std::memcpy(p, &v, 4 * n);
#endif
}

// min(max(t, 0), 6) that lets NaN through: in x86's max and min the second operand wins when either is NaN.
inline V relu6(V t) {
#if defined(__AVX512F__)
  return (V)_mm512_min_ps(_mm512_set1_ps(6), _mm512_max_ps(_mm512_setzero_ps(), (__m512)t));
#elif defined(__AVX2__)
  return (V)_mm256_min_ps(_mm256_set1_ps(6), _mm256_max_ps(_mm256_setzero_ps(), (__m256)t));
#else
  const V zero{}, six = zero + 6;
  t = zero > t ? zero : t;
  return six < t ? six : t;
#endif
}

// g where 0 < t < 6, else 0: the gradient of ReLU6, with TensorFlow's choice at its corners.
inline V relu6_gradient(V t, V g) {
#if defined(__AVX512F__)
  const __mmask16 inside = _mm512_cmp_ps_mask((__m512)t, _mm512_setzero_ps(), _CMP_GT_OQ);
  return (V)_mm512_maskz_mov_ps(_mm512_mask_cmp_ps_mask(inside, (__m512)t, _mm512_set1_ps(6), _CMP_LT_OQ), (__m512)g);
#else
  const V zero{}, six = zero + 6;
  g = t > zero ? g : zero;
  return t < six ? g : zero;
#endif
}

}  // namespace fashion::VARIANT
