// Sixteen floats in the compiler's vector types, for whichever ISA this is compiled for. Lanes are added up in one
// fixed order.
#pragma once
#ifndef GOSSAMER_NS
#error "define GOSSAMER_NS first"
#endif
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__F16C__)
#include <immintrin.h>
#endif

#pragma GCC diagnostic ignored "-Wpsabi"  // nothing here crosses a function boundary of another object

namespace gossamer {
namespace GOSSAMER_NS {
namespace {

#define GOSSAMER_INLINE inline __attribute__((always_inline))

typedef float F16 __attribute__((vector_size(64)));
typedef int32_t I16 __attribute__((vector_size(64)));

constexpr int kLanes = 16;

template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

GOSSAMER_INLINE F16 splat(float value) { return value - F16{}; }

GOSSAMER_INLINE F16 load(const float* p) {
  F16 v;
  memcpy(&v, p, sizeof v);
  return v;
}

GOSSAMER_INLINE void store(float* p, F16 v) { memcpy(p, &v, sizeof v); }

// The first `count` lanes; the others are zero.
GOSSAMER_INLINE F16 load_part(const float* p, int64_t count) {
  F16 v = {};
  for (int i = 0; i < kLanes; ++i)
    if (i < count) v[i] = p[i];
  return v;
}

GOSSAMER_INLINE void store_part(float* p, F16 v, int64_t count) {
  for (int i = 0; i < kLanes; ++i)
    if (i < count) p[i] = v[i];
}

GOSSAMER_INLINE float sum_lanes(F16 v) {
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) v[i] += v[i + width];
  return v[0];
}

GOSSAMER_INLINE F16 maximum(F16 a, F16 b) {
#if defined(__AVX2__) && !defined(__AVX512F__)  // where compilers choose lane by lane
  __m256 x[2];
  __m256 y[2];
  memcpy(x, &a, sizeof x);
  memcpy(y, &b, sizeof y);
  for (int h = 0; h < 2; ++h) x[h] = _mm256_max_ps(x[h], y[h]);
  memcpy(&a, x, sizeof a);
  return a;
#else
  return a > b ? a : b;
#endif
}

GOSSAMER_INLINE float max_lanes(F16 v) {
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) v[i] = v[i] > v[i + width] ? v[i] : v[i + width];
  return v[0];
}

// Adding and subtracting 1.5 * 2^23 rounds to an integer, nearest even, for |v| < 2^22.
GOSSAMER_INLINE F16 round_even(F16 v) {
  const F16 magic = splat(12582912.0F);
  return (v + magic) - magic;
}

// e^x to about 2 ulp; 0 below -87, and at most e^88. NaN stays NaN.
GOSSAMER_INLINE F16 exponential(F16 x) {
  const F16 low = splat(-87.33654F);
  const F16 high = splat(88.0F);
  const I16 tiny = x < low;
  F16 v = x > high ? high : x;
  v = tiny ? low : v;
  const F16 n = round_even(v * splat(1.44269504F));
  F16 r = v - n * splat(0.693359375F);  // ln 2 in two parts
  r = r - n * splat(-2.12194440e-4F);
  F16 p = splat(1.9875691500e-4F);
  p = p * r + splat(1.3981999507e-3F);
  p = p * r + splat(8.3334519073e-3F);
  p = p * r + splat(4.1665795894e-2F);
  p = p * r + splat(1.6666665459e-1F);
  p = p * r + splat(5.0000001201e-1F);
  p = p * r * r + r + splat(1.0F);
  const I16 power = (__builtin_convertvector(n, I16) + 127) << 23;
  F16 scale;
  memcpy(&scale, &power, sizeof scale);
  const F16 zero = {};
  return tiny ? zero : p * scale;
}

// 16 halves, at any address.
GOSSAMER_INLINE F16 load_f16(const uint16_t* p) {
#if defined(__AVX512F__)
  return (F16)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256((const __m256i*)p));
#else
  float wide[kLanes];
#if defined(__F16C__)
  _mm256_storeu_ps(wide, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)));
  _mm256_storeu_ps(wide + 8, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8))));
#else
  for (int i = 0; i < kLanes; ++i) {
    uint16_t half;
    memcpy(&half, p + i, 2);
    const uint32_t sign = (uint32_t)(half & 0x8000U) << 16;
    const uint32_t magnitude = half & 0x7fffU;
    uint32_t bits;
    if (magnitude >= 0x7c00U) {
      bits = 0x7f800000U | (magnitude & 0x3ffU) << 13;
    } else if (magnitude >= 0x400U) {
      bits = (magnitude << 13) + (112U << 23);
    } else {
      const float subnormal = (float)magnitude * 0x1p-24F;
      memcpy(&bits, &subnormal, 4);
    }
    bits |= sign;
    memcpy(wide + i, &bits, 4);
  }
#endif
  return load(wide);
#endif
}

// 16 numbers to halves, nearest even, infinite beyond the largest.
GOSSAMER_INLINE void store_f16(F16 v, uint16_t* out) {
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)out, _mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT));
#else
  float wide[kLanes];
  memcpy(wide, &v, sizeof v);
#if defined(__F16C__)
  for (int i = 0; i < kLanes; i += 8)
    _mm_storeu_si128((__m128i*)(out + i), _mm256_cvtps_ph(_mm256_loadu_ps(wide + i), _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kLanes; ++i) {
    uint32_t bits;
    memcpy(&bits, wide + i, 4);
    const uint32_t sign = (bits >> 16) & 0x8000U;
    const uint32_t magnitude = bits & 0x7fffffffU;
    uint32_t half;
    if (magnitude > 0x7f800000U) {
      half = 0x7e00U | ((magnitude >> 13) & 0x3ffU);
    } else if (magnitude >= 0x477ff000U) {
      half = 0x7c00U;
    } else if (magnitude < 0x38800000U) {  // subnormal: adding 0.5 puts the last kept bit at the end of the mantissa
      float shifted;
      memcpy(&shifted, &magnitude, 4);
      shifted += 0.5F;
      memcpy(&half, &shifted, 4);
      half -= 0x3f000000U;
    } else {
      half = (magnitude - (112U << 23) + 0xfffU + ((magnitude >> 13) & 1U)) >> 13;
    }
    const uint16_t stored = (uint16_t)(sign | half);
    memcpy(out + i, &stored, 2);
  }
#endif
#endif
}

}  // namespace
}  // namespace GOSSAMER_NS
}  // namespace gossamer
