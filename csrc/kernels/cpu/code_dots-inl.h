// Products of codes of 8 bits with numbers of 16 bits, four to a lane, as exact sums of integers: digits of 8 bits go
// through vpdpbusd where there is one, pairs of 16 bits through pmaddwd or what does the same elsewhere.
#pragma once
#include "kernels/cpu/attend_rows-inl.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace gossamer {
namespace GOSSAMER_NS {
namespace {

constexpr int kFour = 4;  // codes that lie together

// Numbers of 16 bits, four to 8 bytes, as add_dots takes them; `signs`: they may be negative.
#if defined(__AVX512VNNI__)

// First the upper digits of all, then the lower ones. Signed numbers have signed digits, so that
// number = 256 * upper + lower.
constexpr int kDotParts = 2;
template <bool kSigned>
GOSSAMER_INLINE void store_numbers(const I16& n, uint8_t* out, int digits) {
  const I16 lower = kSigned ? (n << 24) >> 24 : n & splat_int(255);
  store_codes((n - lower) >> 8, (int8_t*)out);
  store_codes(lower, (int8_t*)out + digits);
}
// Sums begin with what is not theirs, taken off. Register by register, as are all steps, since what is copied as a whole
// stays in memory.
GOSSAMER_INLINE void begin_dots(I16::Part (&sums)[kDotParts], const int32_t* surplus) {
  for (int i = 0; i < kDotParts; ++i) sums[i] = splat_int(surplus[i]).part[0];
}
GOSSAMER_INLINE void count_surplus(const I16& n, I16 (&sums)[2]) {
  const I16 lower = (n << 24) >> 24;
  sums[0] += (n - lower) >> 8;
  sums[1] += lower;
}
// Instructions of their own, since GCC 12 surrounds the intrinsic with two copies of the sums.
GOSSAMER_INLINE void add_dot_keys(I16::Part& sums, const I16& codes, const uint8_t* digits) {
  typedef int32_t __attribute__((may_alias, aligned(1))) Four;
  __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sums) : "v"(codes.part[0]), "m"(*(const Four*)digits));
}
GOSSAMER_INLINE void add_keys(I16::Part (&sums)[kDotParts], const I16& codes, const uint8_t* q, int digits) {
  add_dot_keys(sums[0], codes, q);
  add_dot_keys(sums[1], codes, q + digits);
}
struct Spread {
  I16 upper, lower;
};
GOSSAMER_INLINE Spread spread(const uint8_t* weights, int digits) {
  int32_t four[2];
  memcpy(four, weights, 4);
  memcpy(four + 1, weights + digits, 4);
  return {splat_int(four[0]), splat_int(four[1])};
}
GOSSAMER_INLINE void add_values(I16::Part (&sums)[kDotParts], const I16& codes, const Spread& weights) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sums[0]) : "v"(weights.upper.part[0]), "v"(codes.part[0]));
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sums[1]) : "v"(weights.lower.part[0]), "v"(codes.part[0]));
}
GOSSAMER_INLINE F16 total_of(const I16::Part (&sums)[kDotParts]) {
  const I16::Part total = (sums[0] << 8) + sums[1];
  return {{__builtin_convertvector(total, F16::Part)}};
}
template <int kRows>
constexpr int code_parts_a_pass() {
  return kRows <= 3 ? 4 : kRows <= 6 ? 2 : 1;
}
constexpr int kNumberStep = 1;  // bytes of a number in each of the two places where it lies

#else

// Numbers 0 and 2 of each four, then 1 and 3, as they meet the even and odd bytes of four codes.
constexpr int kDotParts = kLanes / kPartLanes;
template <bool kSigned>
GOSSAMER_INLINE void store_numbers(const I16& n, uint8_t* out, int) {
  int32_t wide[kLanes];
  memcpy(wide, &n, sizeof wide);
  uint32_t pairs[kLanes / 2];
  for (int i = 0; i < kLanes; i += kFour) {
    pairs[i / 2] = ((uint32_t)wide[i] & 0xffffU) | (uint32_t)wide[i + 2] << 16;
    pairs[i / 2 + 1] = ((uint32_t)wide[i + 1] & 0xffffU) | (uint32_t)wide[i + 3] << 16;
  }
  memcpy(out, pairs, sizeof pairs);
}
GOSSAMER_INLINE void begin_dots(I16::Part (&sums)[kDotParts], const int32_t* surplus) {
  for (int i = 0; i < kDotParts; ++i) sums[i] = splat_int(surplus[0]).part[i];
}
GOSSAMER_INLINE void count_surplus(const I16& n, I16 (&sums)[2]) { sums[0] += n; }
struct Spread {
  I16 even, odd;
};
GOSSAMER_INLINE Spread spread(const uint8_t* numbers, int) {
  int32_t pairs[2];
  memcpy(pairs, numbers, sizeof pairs);
  return {splat_int(pairs[0]), splat_int(pairs[1])};
}
#if defined(__AVX512BW__)
GOSSAMER_INLINE I16::Part even_codes(I16::Part codes, bool is_signed) {
  return is_signed ? (I16::Part)_mm512_srai_epi16(_mm512_slli_epi16((__m512i)codes, 8), 8) : codes & 0x00ff00ff;
}
GOSSAMER_INLINE I16::Part odd_codes(I16::Part codes, bool is_signed) {
  return (I16::Part)(is_signed ? _mm512_srai_epi16((__m512i)codes, 8) : _mm512_srli_epi16((__m512i)codes, 8));
}
GOSSAMER_INLINE I16::Part add_pairs(I16::Part sums, I16::Part codes, I16::Part numbers) {
  return (I16::Part)_mm512_add_epi32((__m512i)sums, _mm512_madd_epi16((__m512i)codes, (__m512i)numbers));
}
#elif defined(__AVX2__)
GOSSAMER_INLINE I16::Part even_codes(I16::Part codes, bool is_signed) {
  return is_signed ? (I16::Part)_mm256_srai_epi16(_mm256_slli_epi16((__m256i)codes, 8), 8) : codes & 0x00ff00ff;
}
GOSSAMER_INLINE I16::Part odd_codes(I16::Part codes, bool is_signed) {
  return (I16::Part)(is_signed ? _mm256_srai_epi16((__m256i)codes, 8) : _mm256_srli_epi16((__m256i)codes, 8));
}
GOSSAMER_INLINE I16::Part add_pairs(I16::Part sums, I16::Part codes, I16::Part numbers) {
  return (I16::Part)_mm256_add_epi32((__m256i)sums, _mm256_madd_epi16((__m256i)codes, (__m256i)numbers));
}
#else
typedef int16_t Halves __attribute__((vector_size(kPartBytes)));
typedef uint16_t Unsigned __attribute__((vector_size(kPartBytes)));
typedef uint32_t Words __attribute__((vector_size(kPartBytes)));
GOSSAMER_INLINE I16::Part even_codes(I16::Part codes, bool is_signed) {
  return is_signed ? (I16::Part)((Halves)((Unsigned)codes << 8) >> 8) : codes & 0x00ff00ff;
}
GOSSAMER_INLINE I16::Part odd_codes(I16::Part codes, bool is_signed) {
  return is_signed ? (I16::Part)((Halves)codes >> 8) : (I16::Part)((Unsigned)codes >> 8);
}
// Modulo 2^32, where sums of unsigned codes may have to come back from.
GOSSAMER_INLINE I16::Part add_pairs(I16::Part sums, I16::Part codes, I16::Part numbers) {
  const Words even = (Words)((I16::Part)((Words)codes << 16) >> 16) * (Words)((I16::Part)((Words)numbers << 16) >> 16);
  const Words odd = (Words)(codes >> 16) * (Words)(numbers >> 16);
  return (I16::Part)((Words)sums + even + odd);
}
#endif
GOSSAMER_INLINE void add_codes(I16::Part (&sums)[kDotParts], const I16& codes, const Spread& numbers, bool is_signed) {
  for (int i = 0; i < kLanes / kPartLanes; ++i) {
    sums[i] = add_pairs(sums[i], even_codes(codes.part[i], is_signed), numbers.even.part[i]);
    sums[i] = add_pairs(sums[i], odd_codes(codes.part[i], is_signed), numbers.odd.part[i]);
  }
}
GOSSAMER_INLINE void add_keys(I16::Part (&sums)[kDotParts], const I16& codes, const uint8_t* q, int digits) {
  add_codes(sums, codes, spread(q, digits), false);
}
GOSSAMER_INLINE void add_values(I16::Part (&sums)[kDotParts], const I16& codes, const Spread& weights) {
  add_codes(sums, codes, weights, true);
}
GOSSAMER_INLINE F16 total_of(const I16::Part (&sums)[kDotParts]) {
  F16 total;
  for (int i = 0; i < kDotParts; ++i) total.part[i] = __builtin_convertvector(sums[i], F16::Part);
  return total;
}
template <int kRows>
constexpr int code_parts_a_pass() {
  return parts_a_pass<kRows>();
}
constexpr int kNumberStep = 2;

#endif

}  // namespace
}  // namespace GOSSAMER_NS
}  // namespace gossamer
