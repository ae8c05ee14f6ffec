// The dot product of the AVX2 bodies for 8-bit activations: of AVX-VNNI where the object is compiled for it, its twin
// of AVX-512 VNNI in the object for tests, else two steps of AVX2. The sums are the same.
#ifndef GOSSAMER_NS
#error "define GOSSAMER_NS first"
#endif
#pragma once

#include <immintrin.h>

namespace gossamer {
namespace GOSSAMER_NS {

#if defined(__AVXVNNI__) || (defined(__AVX512VNNI__) && defined(__AVX512VL__))
constexpr bool kDotInstruction = true;
#else
constexpr bool kDotInstruction = false;
#endif

// sums + the dot products of 4 bytes each, by 32-bit lane. Without the instruction two products must fit 16 bits, as
// those of at most 128 and 127 do.
inline __m256i add_dots(__m256i sums, __m256i unsigned_bytes, __m256i signed_bytes) {
#if defined(__AVXVNNI__)
  return _mm256_dpbusd_avx_epi32(sums, unsigned_bytes, signed_bytes);
#elif defined(__AVX512VNNI__) && defined(__AVX512VL__)
  return _mm256_dpbusd_epi32(sums, unsigned_bytes, signed_bytes);
#else
  const __m256i pairs = _mm256_maddubs_epi16(unsigned_bytes, signed_bytes);
  return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
}

}  // namespace GOSSAMER_NS
}  // namespace gossamer
