// AVX-512 bodies for 8-bit activations, with VBMI2 and VNNI: a word is one register of unsigned codes, and a dot
// product takes 4 inputs of 16 rows.
#pragma once

#include "kernels/cpu/tile_avx512-inl.h"

namespace gossamer {
namespace GOSSAMER_NS {

// The dot product wants one unsigned side. Weights become code + kBias (kBias where nothing is stored), so that the
// surplus kBias * sum(activations) is the same for every row. High nibbles keep their place: codes times 16.
template <ValueType kType, bool kHigh>
constexpr int kBiasBits = kType == ValueType::kInt8 || kHigh ? 7 : 3;
template <ValueType kType, bool kHigh>
constexpr int kBias = 1 << kBiasBits<kType, kHigh>;

template <Layout kLayout, ValueType kType, bool kHigh>
inline __m512i next_codes(const uint64_t*& masks, const uint8_t*& v, int fixed_step) {
  const __m512i bias = _mm512_set1_epi8((char)kBias<kType, kHigh>);
  __m512i codes = _mm512_loadu_si512(v);
  if constexpr (kType == ValueType::kInt8) {
    codes = _mm512_xor_si512(codes, bias);
  } else {
    const __m512i nibble = _mm512_set1_epi8((char)(kHigh ? 0xf0 : 0x0f));
    codes = _mm512_ternarylogic_epi32(codes, nibble, bias, 0x6a);  // (codes & nibble) ^ bias
  }
  if constexpr (kLayout == Layout::kDense) {
    v += kWordBits;
    return codes;
  } else {
    const uint64_t mask = *masks++;
    v += kLayout == Layout::kFixed ? fixed_step : (int)_mm_popcnt_u64(mask);
    return _mm512_mask_expand_epi8(bias, mask, codes);
  }
}

// acc += codes * the 4 inputs at x, for 16 rows. As an instruction of its own, since GCC 12 surrounds the intrinsic
// with two copies of the sums, and loads the inputs apart.
inline __attribute__((always_inline)) void add_dots(__m512i& acc, __m512i codes, const int8_t* x) {
  typedef int32_t __attribute__((may_alias, aligned(1))) Four;
  __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(codes), "m"(*(const Four*)x));
}

// y for `kTokens` tokens from `t0`, of panel `panel`, and of the next one too when kPanels == 2 (the two nibbles of
// int4). Integer sums are exact, so a lone token may spread them over several registers.
template <Layout kLayout, ValueType kType, bool kFirstHigh, int kPanels, int kTokens>
__attribute__((noinline)) void a8_panels(const LinearArgs& a, int panel, int t0) {
  const WeightView& w = a.weight;
  constexpr bool kLastHigh = kPanels == 2 || kFirstHigh;
  constexpr int kRun = 8;  // words: every unit has whole runs
  constexpr int kChains = kTokens * kPanels == 1 ? 4 : kTokens * kPanels <= 4 ? 2 : 1;
  constexpr int kAhead = kLayout != Layout::kDense && kPanels == 2 ? kPrefetchShared : kPrefetch;
  const uint8_t* v[kPanels];
  const uint64_t* masks[kPanels];
  __m512 total[kPanels][kTokens];
  for (int p = 0; p < kPanels; ++p) {
    v[p] = stream_start(w, panel + p);
    masks[p] = kLayout == Layout::kDense ? nullptr : mask_start(w, panel + p);
    for (int t = 0; t < kTokens; ++t) total[p][t] = _mm512_setzero_ps();
  }
  const int fixed_step = kPanelRows * w.n;
  const int unit = a.x.unit;
  const int units = w.blocks * (kBlockCols / unit);
  const bool grouped = w.groups > 1;
  const int8_t* x = a.x.codes + t0 * a.x.stride;
  const float* unit_scales = a.x.unit_scales + t0 * a.x.unit_stride;
  const int32_t* surplus = a.x.unit_surplus + t0 * a.x.unit_stride;
  for (int u = 0; u < units; ++u) {
    if constexpr (kLayout != Layout::kDense) prefetch_masks(w, masks, u * (unit / kWordCols), unit / kWordCols);
    __m512i acc[kPanels][kTokens][kChains];
    for (int t = 0; t < kTokens; ++t) {
      const __m512i less = _mm512_set1_epi32(surplus[t * a.x.unit_stride + u]);
      for (int p = 0; p < kPanels; ++p) {
        const int bits = p == 0 ? kBiasBits<kType, kFirstHigh> : kBiasBits<kType, kLastHigh>;
        acc[p][t][0] = bits == 7 ? less : _mm512_srai_epi32(less, 7 - bits);
        for (int i = 1; i < kChains; ++i) acc[p][t][i] = _mm512_setzero_si512();
      }
    }
    for (int c = 0; c < unit; c += kRun * kWordCols, x += kRun * kWordCols) {
      // A register a token, hidden from the compiler, which otherwise keeps an address of every dot product in memory.
      const int8_t* row[kTokens];
      for (int t = 0; t < kTokens; ++t) {
        row[t] = x + t * a.x.stride;
        __asm__("" : "+r"(row[t]));
      }
#pragma GCC unroll 8
      for (int i = 0; i < kRun; ++i) {
        const __m512i first = next_codes<kLayout, kType, kFirstHigh>(masks[0], v[0], fixed_step);
        for (int t = 0; t < kTokens; ++t) add_dots(acc[0][t][i % kChains], first, row[t] + i * kWordCols);
        if constexpr (kPanels == 2) {
          const __m512i second = next_codes<kLayout, kType, kLastHigh>(masks[1], v[1], fixed_step);
          for (int t = 0; t < kTokens; ++t) add_dots(acc[1][t][i % kChains], second, row[t] + i * kWordCols);
        }
        // Two words with zeros of a lone panel seldom hold more than a line of values.
        if (kLayout == Layout::kDense || kPanels == 2 || i % 2 == 0)
          _mm_prefetch((const char*)v[0] + kAhead, _MM_HINT_T0);
      }
    }
    for (int p = 0; p < kPanels; ++p) {
      const __m512 place = _mm512_set1_ps(p == 1 || kFirstHigh ? 0.0625F : 1.0F);
      const __m512 scale =
          grouped ? _mm512_mul_ps(load_scales(w, panel + p, group_of(w, u, unit), kPanels), place) : place;
      for (int t = 0; t < kTokens; ++t) {
        __m512i sum = acc[p][t][0];
        for (int i = 1; i < kChains; ++i) sum = _mm512_add_epi32(sum, acc[p][t][i]);
        const __m512 factor = _mm512_mul_ps(scale, _mm512_set1_ps(unit_scales[t * a.x.unit_stride + u]));
        total[p][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), factor, total[p][t]);
      }
    }
  }
  for (int p = 0; p < kPanels; ++p) {
    const __mmask16 rows = rows_mask(w, panel + p);
    for (int t = 0; t < kTokens; ++t) {
      if (!grouped) total[p][t] = _mm512_mul_ps(total[p][t], load_scales(w, panel + p, 0));
      _mm512_mask_storeu_ps(a.y + (t0 + t) * a.y_stride + (panel + p) * kPanelRows, rows, total[p][t]);
    }
  }
}

// Tokens whose sums stand in registers, of one panel and of two.
constexpr int kMostTokens = 8;
constexpr int kMostTokensOfTwo = 4;

template <Layout kLayout, ValueType kType>
inline void a8_linear(const LinearArgs& a) {
  for (int s = a.begin; s < a.end; ++s) {
    for_tiles<kMostTokens>(a.x.tokens, [&](auto tile, int t) {
      constexpr int kTokens = decltype(tile)::value;
      if constexpr (kType != ValueType::kInt4) {
        a8_panels<kLayout, kType, false, 1, kTokens>(a, s, t);
      } else if (2 * s + 1 == a.weight.panels) {
        a8_panels<kLayout, kType, false, 1, kTokens>(a, 2 * s, t);
      } else if constexpr (kTokens <= kMostTokensOfTwo) {
        a8_panels<kLayout, kType, false, 2, kTokens>(a, 2 * s, t);
      } else {
        a8_panels<kLayout, kType, false, 1, kTokens>(a, 2 * s, t);
        a8_panels<kLayout, kType, true, 1, kTokens>(a, 2 * s + 1, t);
      }
    });
  }
}

}  // namespace GOSSAMER_NS
}  // namespace gossamer
