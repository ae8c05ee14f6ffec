// Norm, rotary, softmax attention and their kin, written once over 16 lanes with the compiler's vector types and
// compiled for each ISA. Lanes are added up in one fixed order, so results do not depend on the number of tokens or
// threads.
#ifndef GOSSAMER_NS
#error "define GOSSAMER_NS first"
#endif
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "kernels/vector_kernels.h"

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

GOSSAMER_INLINE F16 maximum(F16 a, F16 b) { return a > b ? a : b; }

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

void rms_norm(const float* x, const float* weight, int64_t n, float eps, float* out) noexcept {
  F16 squares = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const F16 v = load(x + i);
    squares += v * v;
  }
  if (i < n) {
    const F16 v = load_part(x + i, n - i);
    squares += v * v;
  }
  const float scale = 1.0F / sqrtf(sum_lanes(squares) / (float)n + eps);
  i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, load(x + i) * splat(scale) * load(weight + i));
  for (; i < n; ++i) out[i] = x[i] * scale * weight[i];
}

void quantize(const float* x, int64_t n, int64_t padded, int32_t unit, int8_t* codes, float* scales,
              int32_t* surplus) noexcept {
  for (int64_t first = 0; first < padded; first += unit) {
    F16 parts[4];  // a unit has 2 or 4 of them
    F16 largest = {};
    const int count = unit / kLanes;
    for (int j = 0; j < count; ++j) {
      const int64_t at = first + j * kLanes;
      parts[j] = at + kLanes <= n ? load(x + at) : load_part(x + at, at < n ? n - at : 0);
      largest = maximum(largest, maximum(parts[j], -parts[j]));
    }
    const float magnitude = max_lanes(largest);
    const float inverse = magnitude > 0 ? 127.0F / magnitude : 0.0F;
    scales[first / unit] = magnitude / 127.0F;
    // A magnitude too small for its inverse, or one that is not finite, has no codes; the scale tells the rest.
    const bool codable = inverse < INFINITY && magnitude < INFINITY;
    I16 total = {};
    for (int j = 0; j < count; ++j) {
      I16 code = {};
      if (codable) {
        const F16 scaled = round_even(parts[j] * splat(inverse));
        const F16 bounded = scaled == scaled ? scaled : F16{};
        code = __builtin_convertvector(bounded, I16);
      }
      total += code;
      typedef int8_t C16 __attribute__((vector_size(16)));
      const C16 bytes = __builtin_convertvector(code, C16);
      memcpy(codes + first + j * kLanes, &bytes, sizeof bytes);
    }
    int32_t sum = 0;
    for (int i = 0; i < kLanes; ++i) sum += total[i];
    surplus[first / unit] = -128 * sum;
    for (int j = 0; j < count; ++j) {  // NaN poisons the unit instead of vanishing
      const I16 bad = parts[j] != parts[j];
      for (int i = 0; i < kLanes; ++i)
        if (bad[i] != 0) scales[first / unit] = NAN;
    }
  }
}

void to_bf16(const float* x, int64_t n, int64_t padded, uint16_t* out) noexcept {
  for (int64_t i = 0; i < padded; ++i) {
    uint32_t bits = 0;
    if (i < n) memcpy(&bits, x + i, 4);
    const uint32_t nan = (bits & 0x7fffffffU) > 0x7f800000U ? 0x400000U : 0;
    const uint32_t rounded = nan != 0 ? bits | nan : bits + 0x7fffU + ((bits >> 16) & 1U);
    const uint16_t half = (uint16_t)(rounded >> 16);
    memcpy(out + i, &half, 2);
  }
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

void widen(const void* x, FloatType type, int64_t n, int64_t padded, float* out) noexcept {
  if (type == FloatType::kF32) {
    memcpy(out, x, sizeof(float) * (size_t)n);
  } else if (type == FloatType::kBf16) {
    for (int64_t i = 0; i < n; ++i) {
      uint16_t half;
      memcpy(&half, (const char*)x + 2 * i, 2);
      const uint32_t bits = (uint32_t)half << 16;
      memcpy(out + i, &bits, 4);
    }
  } else {
    const uint16_t* halves = (const uint16_t*)x;
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store(out + i, load_f16(halves + i));
    if (i < n) {
      uint16_t rest[kLanes] = {};
      memcpy(rest, halves + i, 2 * (size_t)(n - i));
      store_part(out + i, load_f16(rest), n - i);
    }
  }
  if (padded > n) memset(out + n, 0, sizeof(float) * (size_t)(padded - n));
}

void narrow(const float* x, int64_t n, FloatType type, void* out) noexcept {
  if (type == FloatType::kF32) {
    memcpy(out, x, sizeof(float) * (size_t)n);
  } else if (type == FloatType::kBf16) {
    to_bf16(x, n, n, (uint16_t*)out);
  } else {
    uint16_t* halves = (uint16_t*)out;
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store_f16(load(x + i), halves + i);
    if (i < n) {
      uint16_t rest[kLanes];
      store_f16(load_part(x + i, n - i), rest);
      memcpy(halves + i, rest, 2 * (size_t)(n - i));
    }
  }
}

void silu_mul(float* gate, const float* up, int64_t n) noexcept {
  const F16 one = splat(1.0F);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const F16 g = load(gate + i);
    store(gate + i, g / (one + exponential(-g)) * load(up + i));
  }
  if (i < n) {
    const F16 g = load_part(gate + i, n - i);
    store_part(gate + i, g / (one + exponential(-g)) * load_part(up + i, n - i), n - i);
  }
}

void add(float* x, const float* y, int64_t n) noexcept {
  for (int64_t i = 0; i < n; ++i) x[i] += y[i];
}

void rope(float* x, int32_t heads, int32_t head_dim, int32_t half, const float* cosines, const float* sines) noexcept {
  for (int32_t h = 0; h < heads; ++h, x += head_dim) {
    for (int32_t j = 0; j < half; ++j) {
      const float a = x[j];
      const float b = x[j + half];
      x[j] = a * cosines[j] - b * sines[j];
      x[j + half] = b * cosines[j] + a * sines[j];
    }
  }
}

// --- the KV cache's element types
// ----------------------------------------------------------------------------------------

struct KvF32 {
  typedef float Element;
  static GOSSAMER_INLINE F16 load16(const float* p) { return load(p); }
  static GOSSAMER_INLINE float narrow(float value) { return value; }
};

struct KvF16 {
  typedef uint16_t Element;
  static GOSSAMER_INLINE F16 load16(const uint16_t* p) { return load_f16(p); }
  // Nearest even, clamped to the largest finite value: a KV entry must not become infinite.
  static GOSSAMER_INLINE uint16_t narrow(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    const uint32_t sign = (bits >> 16) & 0x8000U;
    const uint32_t magnitude = bits & 0x7fffffffU;
    if (magnitude > 0x7f800000U) return (uint16_t)(sign | 0x7e00U);
    if (magnitude >= 0x477fe000U) return (uint16_t)(sign | 0x7bffU);
    if (magnitude < 0x38800000U) {
      float shifted;
      memcpy(&shifted, &magnitude, 4);
      shifted += 0.5F;
      memcpy(&bits, &shifted, 4);
      return (uint16_t)(sign | (bits - 0x3f000000U));
    }
    return (uint16_t)(sign | ((magnitude - (112U << 23) + 0xfffU + ((magnitude >> 13) & 1U)) >> 13));
  }
};

template <class Kv>
void store_k(const float* k, int32_t head_dim, uint8_t* page, int32_t slot) noexcept {
  typename Kv::Element* to = (typename Kv::Element*)page;
  for (int32_t d = 0; d < head_dim; ++d) to[d * kPageTokens + slot] = Kv::narrow(k[d]);
}

template <class Kv>
void store_v(const float* v, int32_t head_dim, int32_t padded_dim, uint8_t* page, int32_t slot) noexcept {
  typename Kv::Element* to = (typename Kv::Element*)page + (int64_t)slot * padded_dim;
  for (int32_t d = 0; d < head_dim; ++d) to[d] = Kv::narrow(v[d]);
}

// Scores of kHeads query heads with kParts times 16 tokens of a page.
template <class Kv, int kHeads, int kParts>
void score_page(const float* q, int32_t head_dim, const typename Kv::Element* k, float scale, float* scores) {
  F16 acc[kHeads][kParts] = {};
  for (int32_t d = 0; d < head_dim; ++d, k += kPageTokens) {
    F16 keys[kParts];
    for (int j = 0; j < kParts; ++j) keys[j] = Kv::load16(k + j * kLanes);
    for (int h = 0; h < kHeads; ++h) {
      const F16 qd = splat(q[h * head_dim + d]);
      for (int j = 0; j < kParts; ++j) acc[h][j] += qd * keys[j];
    }
  }
  for (int h = 0; h < kHeads; ++h)
    for (int j = 0; j < kParts; ++j) store(scores + h * kAttentionSpan + j * kLanes, acc[h][j] * splat(scale));
}

// Adds kParts times 16 elements of `tokens` rows of V, each times its weight, to the outputs of kHeads query heads.
template <class Kv, int kHeads, int kParts>
void mix_page(const float* weights, int tokens, const typename Kv::Element* v, int32_t padded_dim, float* out) {
  F16 acc[kHeads][kParts];
  for (int h = 0; h < kHeads; ++h)
    for (int j = 0; j < kParts; ++j) acc[h][j] = load(out + h * padded_dim + j * kLanes);
  for (int t = 0; t < tokens; ++t, v += padded_dim) {
    F16 values[kParts];
    for (int j = 0; j < kParts; ++j) values[j] = Kv::load16(v + j * kLanes);
    for (int h = 0; h < kHeads; ++h) {
      const F16 weight = splat(weights[h * kAttentionSpan + t]);
      for (int j = 0; j < kParts; ++j) acc[h][j] += weight * values[j];
    }
  }
  for (int h = 0; h < kHeads; ++h)
    for (int j = 0; j < kParts; ++j) store(out + h * padded_dim + j * kLanes, acc[h][j]);
}

// Calls `body` with 1 to 4, as a constant.
template <class Body>
GOSSAMER_INLINE void with_parts(int parts, const Body& body) {
  switch (parts) {
    case 1:
      return body(Constant<1>{});
    case 2:
      return body(Constant<2>{});
    case 3:
      return body(Constant<3>{});
    default:
      return body(Constant<4>{});
  }
}

template <class Kv, int kHeads>
void attend_heads(const AttentionArgs& a, int first_head) {
  typedef typename Kv::Element Element;
  const uint8_t* const* pages = a.pages + a.begin / kPageTokens;
  const int count = a.end - a.begin;
  const float* q = a.q + (int64_t)first_head * a.head_dim;
  float* out = a.out + (int64_t)first_head * a.padded_dim;
  for (int at = 0; at < count; at += kPageTokens) {
    const Element* k = (const Element*)(pages[at / kPageTokens] + a.offset);
    with_parts((count - at + kLanes - 1) / kLanes, [&](auto parts) {
      score_page<Kv, kHeads, decltype(parts)::value>(q, a.head_dim, k, a.scale, a.scores + at);
    });
  }
  for (int h = 0; h < kHeads; ++h) {
    float* scores = a.scores + h * kAttentionSpan;
    F16 largest = splat(-INFINITY);
    for (int at = 0; at < count; at += kLanes) {
      if (at + kLanes > count)
        for (int i = count; i < at + kLanes; ++i) scores[i] = -INFINITY;
      largest = maximum(largest, load(scores + at));
    }
    const float top = max_lanes(largest);
    F16 total = {};
    for (int at = 0; at < count; at += kLanes) {
      const F16 weight = exponential(load(scores + at) - splat(top));
      store(scores + at, weight);
      total += weight;
    }
    a.maximum[first_head + h] = top;
    a.sum[first_head + h] = sum_lanes(total);
  }
  memset(out, 0, sizeof(float) * (size_t)kHeads * (size_t)a.padded_dim);
  for (int32_t d = 0; d < a.padded_dim; d += kLanes * 4) {
    with_parts((a.padded_dim - d) / kLanes, [&](auto parts) {
      for (int at = 0; at < count; at += kPageTokens) {
        const Element* v = (const Element*)(pages[at / kPageTokens] + a.offset) + (int64_t)a.head_dim * kPageTokens + d;
        const int tokens = count - at < kPageTokens ? count - at : kPageTokens;
        mix_page<Kv, kHeads, decltype(parts)::value>(a.scores + at, tokens, v, a.padded_dim, out + d);
      }
    });
  }
}

// Query heads share the loads of K and V where there are registers for the sums of several.
template <class Kv>
void attend(const AttentionArgs& a) noexcept {
  int h = 0;
#if defined(__AVX512F__)
  for (; h + kAttentionHeads <= a.query_heads; h += kAttentionHeads) attend_heads<Kv, kAttentionHeads>(a, h);
  if (h + 3 == a.query_heads) return attend_heads<Kv, 3>(a, h);
  if (h + 2 == a.query_heads) return attend_heads<Kv, 2>(a, h);
#endif
  for (; h < a.query_heads; ++h) attend_heads<Kv, 1>(a, h);
}

}  // namespace

// One entry a KV type.
extern const VectorKernels kVectorKernels[2];
const VectorKernels kVectorKernels[2] = {
    {rms_norm, quantize, to_bf16, widen, narrow, silu_mul, add, rope, store_k<KvF32>, store_v<KvF32>, attend<KvF32>},
    {rms_norm, quantize, to_bf16, widen, narrow, silu_mul, add, rope, store_k<KvF16>, store_v<KvF16>, attend<KvF16>},
};

}  // namespace GOSSAMER_NS
}  // namespace gossamer
