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

constexpr int kLanes = 16;

// Bytes of a register.
#if defined(__AVX512F__)
constexpr int kPartBytes = 64;
#elif defined(__AVX2__)
constexpr int kPartBytes = 32;
#else
constexpr int kPartBytes = 16;
#endif
constexpr int kPartLanes = kPartBytes / 4;

// Sixteen lanes, as the registers that hold them: compilers keep wider vectors in memory, and compare, choose and convert
// them one by one.
template <class Element>
struct Lanes {
  typedef Element Part __attribute__((vector_size(kPartBytes)));
  Part part[kLanes / kPartLanes];
};
typedef Lanes<float> F16;
typedef Lanes<int32_t> I16;

template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

// `of` each part of some lanes.
template <class To, class From, class Of>
GOSSAMER_INLINE Lanes<To> each(const Lanes<From>& a, const Of& of) {
  Lanes<To> out;
  for (int i = 0; i < kLanes / kPartLanes; ++i) out.part[i] = of(a.part[i]);
  return out;
}
template <class To, class From, class Of>
GOSSAMER_INLINE Lanes<To> each(const Lanes<From>& a, const Lanes<From>& b, const Of& of) {
  Lanes<To> out;
  for (int i = 0; i < kLanes / kPartLanes; ++i) out.part[i] = of(a.part[i], b.part[i]);
  return out;
}

#define GOSSAMER_OPERATOR(element, sign)                                                            \
  GOSSAMER_INLINE Lanes<element> operator sign(const Lanes<element>& a, const Lanes<element>& b) {  \
    return each<element>(a, b, [](auto x, auto y) { return x sign y; });                            \
  }                                                                                                 \
  GOSSAMER_INLINE Lanes<element>& operator sign## = (Lanes<element> & a, const Lanes<element>& b) { \
    return a = a sign b;                                                                            \
  }
GOSSAMER_OPERATOR(float, +)
GOSSAMER_OPERATOR(float, -)
GOSSAMER_OPERATOR(float, *)
GOSSAMER_OPERATOR(float, /)
GOSSAMER_OPERATOR(int32_t, +)
GOSSAMER_OPERATOR(int32_t, -)
GOSSAMER_OPERATOR(int32_t, &)
GOSSAMER_OPERATOR(int32_t, |)
#undef GOSSAMER_OPERATOR

// a + b modulo 2^32.
GOSSAMER_INLINE I16 wrapped_sum(const I16& a, const I16& b) {
  typedef uint32_t Bits __attribute__((vector_size(kPartBytes)));
  return each<int32_t>(a, b, [](auto x, auto y) { return (decltype(x))((Bits)x + (Bits)y); });
}

GOSSAMER_INLINE F16 operator-(const F16& a) {
  return each<float>(a, [](auto x) { return -x; });
}
GOSSAMER_INLINE I16 operator~(const I16& a) {
  return each<int32_t>(a, [](auto x) { return ~x; });
}
GOSSAMER_INLINE I16 operator<<(const I16& a, int by) {
  return each<int32_t>(a, [by](auto x) { return x << by; });
}
GOSSAMER_INLINE I16 operator>>(const I16& a, int by) {
  return each<int32_t>(a, [by](auto x) { return x >> by; });
}

GOSSAMER_INLINE F16 splat(float value) {
  F16 v = {};
  return each<float>(v, [value](auto zero) { return value - zero; });
}
GOSSAMER_INLINE I16 splat_int(int32_t value) {
  I16 v = {};
  return each<int32_t>(v, [value](auto zero) { return value - zero; });
}

// a * b + c, fused where that is an instruction. As a sum of a product it would be, or not, as compilers like it in each
// place that has one.
GOSSAMER_INLINE F16 multiply_add(const F16& a, const F16& b, const F16& c) {
  F16 out;
  for (int i = 0; i < kLanes / kPartLanes; ++i) {
#if defined(__AVX512F__)
    out.part[i] = (F16::Part)_mm512_fmadd_ps((__m512)a.part[i], (__m512)b.part[i], (__m512)c.part[i]);
#elif defined(__FMA__)
    out.part[i] = (F16::Part)_mm256_fmadd_ps((__m256)a.part[i], (__m256)b.part[i], (__m256)c.part[i]);
#else
    out.part[i] = a.part[i] * b.part[i] + c.part[i];
#endif
  }
  return out;
}

// Register by register, since what is copied as a whole stays in memory.
template <class Element>
GOSSAMER_INLINE Lanes<Element> load_lanes(const void* p) {
  Lanes<Element> v;
  for (int i = 0; i < kLanes / kPartLanes; ++i) {
    typename Lanes<Element>::Part part;
    memcpy(&part, (const char*)p + i * kPartBytes, sizeof part);
    v.part[i] = part;
  }
  return v;
}
GOSSAMER_INLINE F16 load(const float* p) { return load_lanes<float>(p); }
GOSSAMER_INLINE I16 load_int(const void* p) { return load_lanes<int32_t>(p); }

GOSSAMER_INLINE void store(float* p, const F16& v) {
  for (int i = 0; i < kLanes / kPartLanes; ++i) {
    const F16::Part part = v.part[i];
    memcpy(p + i * kPartLanes, &part, sizeof part);
  }
}

// The same bits.
GOSSAMER_INLINE I16 bits_of(const F16& v) {
  return each<int32_t>(v, [](auto x) { return (I16::Part)x; });
}
GOSSAMER_INLINE F16 floats_of(const I16& v) {
  return each<float>(v, [](auto x) { return (F16::Part)x; });
}
// Whole numbers, of as many bits as both hold.
GOSSAMER_INLINE I16 to_int(const F16& v) {
  return each<int32_t>(v, [](auto x) { return __builtin_convertvector(x, I16::Part); });
}

// The first `count` lanes; the others are zero.
GOSSAMER_INLINE F16 load_part(const float* p, int64_t count) {
  float lanes[kLanes] = {};
  for (int i = 0; i < kLanes; ++i)
    if (i < count) lanes[i] = p[i];
  return load(lanes);
}

GOSSAMER_INLINE void store_part(float* p, const F16& v, int64_t count) {
  float lanes[kLanes];
  store(lanes, v);
  for (int i = 0; i < kLanes; ++i)
    if (i < count) p[i] = lanes[i];
}

// Lanes i and i + width as one, for widths 8, 4, 2 and 1. In halves, since shuffles of 16 lanes are many where
// registers hold fewer.
template <class Lane, class Join>
GOSSAMER_INLINE Lane fold_lanes(const Lanes<Lane>& lanes, const Join& join) {
  typedef Lane V8 __attribute__((vector_size(32)));
  typedef Lane V4 __attribute__((vector_size(16)));
  V8 halves[2];
  memcpy(halves, &lanes, sizeof halves);
  const V8 eight = join(halves[0], halves[1]);
  V4 quarters[2];
  memcpy(quarters, &eight, sizeof quarters);
  const V4 four = join(quarters[0], quarters[1]);
  return join(join(four[0], four[2]), join(four[1], four[3]));
}

GOSSAMER_INLINE float sum_lanes(const F16& v) {
  return fold_lanes(v, [](auto a, auto b) { return a + b; });
}

GOSSAMER_INLINE F16 maximum(const F16& a, const F16& b) {
  return each<float>(a, b, [](auto x, auto y) { return x > y ? x : y; });
}

GOSSAMER_INLINE float max_lanes(const F16& v) {
  return fold_lanes(v, [](auto a, auto b) { return a > b ? a : b; });
}

// All bits of the lanes that are NaN.
GOSSAMER_INLINE I16 is_nan(const F16& v) {
  return (splat_int(0x7f800000) - (bits_of(v) & splat_int(0x7fffffff))) >> 31;
}

// Adding and subtracting 1.5 * 2^23 rounds to an integer, nearest even, for |v| < 2^22.
GOSSAMER_INLINE F16 round_even(const F16& v) {
  const F16 magic = splat(12582912.0F);
  return (v + magic) - magic;
}

// All bits of the lanes where a < b.
template <class Element>
GOSSAMER_INLINE I16 less(const Lanes<Element>& a, const Lanes<Element>& b) {
  I16 out;
  for (int i = 0; i < kLanes / kPartLanes; ++i) out.part[i] = a.part[i] < b.part[i];
  return out;
}

// e^x to about 2 ulp; 0 below -87, and at most e^88. NaN stays NaN.
GOSSAMER_INLINE F16 exponential(const F16& x) {
  const F16 low = splat(-87.33654F);
  const F16 high = splat(88.0F);
  const I16 tiny = less(x, low);
  const F16 v = each<float>(each<float>(x, high, [](auto a, auto b) { return a > b ? b : a; }), low,
                            [](auto a, auto b) { return a < b ? b : a; });
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
  const F16 scale = floats_of((to_int(n) + splat_int(127)) << 23);
  return floats_of(bits_of(p * scale) & ~tiny);
}

// tanh x to about 2 ulp: an odd polynomial near 0, and 1 - 2 / (1 + e^2x) beyond. NaN stays NaN.
GOSSAMER_INLINE F16 hyperbolic_tangent(const F16& x) {
  const F16 size = maximum(x, -x);
  const F16 far = splat(1.0F) - splat(2.0F) / (splat(1.0F) + exponential(size + size));
  const F16 square = x * x;
  F16 p = splat(-5.70498872745e-3F);
  p = p * square + splat(2.06390887954e-2F);
  p = p * square + splat(-5.37397155531e-2F);
  p = p * square + splat(1.33314422036e-1F);
  p = p * square + splat(-3.33332819422e-1F);
  const F16 near = p * square * x + x;
  const I16 is_near = less(size, splat(0.625F));
  const I16 sign = bits_of(x) & splat_int((int32_t)0x80000000U);
  return floats_of((bits_of(near) & is_near) | ((bits_of(far) | sign) & ~is_near));
}

// e^x of x <= 0 to 2^-13, enough for 8 bits; 0 where it is below 2^-50. NaN stays NaN.
GOSSAMER_INLINE F16 short_exponential(const F16& x) {
  const F16 t = x * splat(1.44269504F);
  const F16 n = round_even(t);
  const F16 f = t - n;
  F16 p = splat(5.500893e-2F);
  p = p * f + splat(2.4221097e-1F);
  p = p * f + splat(6.9328293e-1F);
  p = p * f + splat(1.0F);
  // Far below that the sum of the exponents wraps around, and does not count.
  return floats_of(wrapped_sum(bits_of(p), to_int(n) << 23) & ~less(t, splat(-49.0F)));
}

// Finite numbers as bf16 has them: not above its largest, and zero below 2^-50. NaN stays NaN.
GOSSAMER_INLINE F16 bounded(const F16& v) {
  const F16 most = splat(3.3895314e38F);
  const F16 up = each<float>(v, most, [](auto a, auto b) { return a > b ? b : a; });
  const F16 both = each<float>(up, -most, [](auto a, auto b) { return a < b ? b : a; });
  return floats_of(bits_of(both) & ~less(maximum(both, -both), splat(0x1p-50F)));
}

// Nearest even; subnormal numbers do not come here.
GOSSAMER_INLINE void store_bf16(const F16& v, uint16_t* out) {
#if defined(__AVX512BF16__)
  _mm256_storeu_si256((__m256i*)out, (__m256i)_mm512_cvtneps_pbh((__m512)v.part[0]));
#else
  const I16 bits = bits_of(v);
  const I16 nan = less(splat_int(0x7f800000), bits & splat_int(0x7fffffff));
  const I16 nearest = bits + splat_int(0x7fff) + ((bits >> 16) & splat_int(1));
  const I16 rounded = (nearest & ~nan) | ((bits | splat_int(0x400000)) & nan);
#if defined(__AVX2__) && !defined(__AVX512F__)  // which compilers narrow one by one
  const I16 halves = (rounded >> 16) & splat_int(0xffff);
  _mm256_storeu_si256((__m256i*)out, _mm256_permute4x64_epi64(
                                         _mm256_packus_epi32((__m256i)halves.part[0], (__m256i)halves.part[1]), 0xd8));
#else
  typedef uint16_t Halves __attribute__((vector_size(kPartBytes / 2)));
  for (int i = 0; i < kLanes / kPartLanes; ++i) {
    const Halves halves = __builtin_convertvector(rounded.part[i] >> 16, Halves);
    memcpy(out + i * kPartLanes, &halves, sizeof halves);
  }
#endif
#endif
}

// Codes of at most 8 bits.
GOSSAMER_INLINE void store_codes(const I16& code, int8_t* out) {
#if defined(__AVX2__) && !defined(__AVX512F__)  // which compilers narrow one by one
  const __m256i words =
      _mm256_permute4x64_epi64(_mm256_packs_epi32((__m256i)code.part[0], (__m256i)code.part[1]), 0xd8);
  _mm_storeu_si128((__m128i*)out, _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
#else
  typedef int8_t Bytes __attribute__((vector_size(kPartLanes)));
  for (int i = 0; i < kLanes / kPartLanes; ++i) {
    const Bytes bytes = __builtin_convertvector(code.part[i], Bytes);
    memcpy(out + i * kPartLanes, &bytes, sizeof bytes);
  }
#endif
}

// 16 halves, at any address.
GOSSAMER_INLINE F16 load_f16(const uint16_t* p) {
#if defined(__AVX512F__)
  return {{(F16::Part)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256((const __m256i*)p))}};
#elif defined(__F16C__)
  return {{(F16::Part)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)),
           (F16::Part)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))}};
#else
  float wide[kLanes];
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
  return load(wide);
#endif
}

// 16 numbers to halves, nearest even, infinite beyond the largest.
GOSSAMER_INLINE void store_f16(const F16& v, uint16_t* out) {
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)out, _mm512_maskz_cvtps_ph(0xffff, (__m512)v.part[0], _MM_FROUND_TO_NEAREST_INT));
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
