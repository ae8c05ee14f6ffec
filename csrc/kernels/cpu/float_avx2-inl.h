// AVX2 bodies for f32 and bf16 activations: a word is 8 registers, register q has rows 2q and 2q + 1, 4 inputs each.
#pragma once

#include "kernels/cpu/tile_avx2-inl.h"

namespace gossamer {
namespace GOSSAMER_NS {

// By a mask byte: the place of each of its 8 positions among the stored values, or -128.
struct Places {
  alignas(64) int8_t values[256][8];
  alignas(64) int8_t byte_pairs[256][16];
};

constexpr Places make_places() {
  Places places = {};
  for (int mask = 0; mask < 256; ++mask) {
    for (int bit = 0, count = 0; bit < 8; ++bit) {
      const bool stored = (mask >> bit & 1) != 0;
      places.values[mask][bit] = (int8_t)(stored ? count : -128);
      places.byte_pairs[mask][2 * bit] = (int8_t)(stored ? 2 * count : -128);
      places.byte_pairs[mask][2 * bit + 1] = (int8_t)(stored ? 2 * count + 1 : -128);
      count += stored ? 1 : 0;
    }
  }
  return places;
}

constexpr Places kPlaces = make_places();

template <ValueType kType>
constexpr int kValueBytes = kType == ValueType::kF32                                  ? 4
                            : (kType == ValueType::kBf16 || kType == ValueType::kF16) ? 2
                                                                                      : 1;

template <ValueType kType>
inline __m256 widen_16bit(__m128i values) {
  if constexpr (kType == ValueType::kF16) return _mm256_cvtph_ps(values);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(values), 16));
}

// The 8 numbers at v.
template <ValueType kType>
inline __m256 load_eight(const uint8_t* v) {
  if constexpr (kType == ValueType::kF32) return _mm256_loadu_ps((const float*)v);
  return widen_16bit<kType>(_mm_loadu_si128((const __m128i*)v));
}

// The 8 positions of a mask byte, from the values stored at v.
template <ValueType kType>
inline __m256 expand_eight(const uint8_t* v, unsigned mask) {
  if constexpr (kType == ValueType::kF32) {
    const __m256i places = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)kPlaces.values[mask]));
    const __m256 values = _mm256_permutevar8x32_ps(_mm256_loadu_ps((const float*)v), places);
    return _mm256_blendv_ps(values, _mm256_setzero_ps(), _mm256_castsi256_ps(places));
  } else {
    const __m128i places = _mm_load_si128((const __m128i*)kPlaces.byte_pairs[mask]);
    return widen_16bit<kType>(_mm_shuffle_epi8(_mm_loadu_si128((const __m128i*)v), places));
  }
}

// Hands each register q of each of the next `words` words, at most a block, to use(word, q, numbers), before any scale.
template <Layout kLayout, ValueType kType, bool kHigh, class Use>
inline void next_numbers(Cursor& at, int words, const Use& use) {
  if constexpr (kType == ValueType::kInt8 || kType == ValueType::kInt4) {
    alignas(32) uint8_t codes[kBlockWords * kWordBits];
    for (int i = 0; i < words; i += kSpanWords) store_codes<kLayout, kType, kHigh>(at, codes + i * kWordBits);
    for (int i = 0; i < words; ++i) {
#pragma GCC unroll 8
      for (int q = 0; q < 8; ++q) {
        const __m128i eight = _mm_loadl_epi64((const __m128i*)(codes + i * kWordBits + q * 8));
        const __m256i wide = kType == ValueType::kInt8
                                 ? _mm256_cvtepi8_epi32(eight)
                                 : _mm256_sub_epi32(_mm256_cvtepu8_epi32(eight), _mm256_set1_epi32(8));
        use(i, q, _mm256_cvtepi32_ps(wide));
      }
    }
  } else {
    constexpr int kBytes = kValueBytes<kType>;
    const uint8_t* v = at.v;
    for (int i = 0; i < words; ++i) {
      const uint64_t mask = kLayout == Layout::kDense ? 0 : at.masks[i];
#pragma GCC unroll 8
      for (int q = 0; q < 8; ++q) {
        if constexpr (kLayout == Layout::kDense) {
          use(i, q, load_eight<kType>(v + q * 8 * kBytes));
        } else {
          const int64_t before =
              kLayout == Layout::kFixed ? 2 * q * at.n : _mm_popcnt_u64(_bzhi_u64(mask, (unsigned)(8 * q)));
          use(i, q, expand_eight<kType>(v + before * kBytes, ((const uint8_t*)(at.masks + i))[q]));
        }
      }
      v += kBytes * (kLayout == Layout::kDense   ? kWordBits
                     : kLayout == Layout::kFixed ? 16 * at.n
                                                 : _mm_popcnt_u64(mask));
      for (int line = 0; line < kBytes; ++line) _mm_prefetch((const char*)v + kPrefetch + 64 * line, _MM_HINT_T0);
    }
    at.v = v;
    if constexpr (kLayout != Layout::kDense) at.masks += words;
  }
}

// A token's inputs from input c on.
template <ActivationType kActivation>
inline auto inputs_from(const Activations& x, int token, int64_t c) {
  const int64_t at = token * x.stride + c;
  if constexpr (kActivation == ActivationType::kF32)
    return x.f32 + at;
  else
    return x.bf16 + at;
}

// 4 inputs, twice.
inline __m256 inputs4(const float* x) { return _mm256_broadcast_ps((const __m128*)x); }

inline __m256 inputs4(const uint16_t* x) {
  int64_t four;
  __builtin_memcpy(&four, x, 8);
  const __m256i to_high_half = _mm256_setr_epi8(-1, -1, 0, 1, -1, -1, 2, 3, -1, -1, 4, 5, -1, -1, 6, 7,  //
                                                -1, -1, 0, 1, -1, -1, 2, 3, -1, -1, 4, 5, -1, -1, 6, 7);
  return _mm256_castsi256_ps(_mm256_shuffle_epi8(_mm256_set1_epi64x(four), to_high_half));
}

// Sums each 128-bit part (one row's 4 lanes) and puts the rows in order.
inline Rows sum_rows(const __m256* acc) {
  Rows rows;
  for (int h = 0; h < 2; ++h) {
    const __m256* a = acc + 4 * h;
    const __m256 sums =
        _mm256_hadd_ps(_mm256_hadd_ps(a[0], a[1]), _mm256_hadd_ps(a[2], a[3]));  // even rows, then odd ones
    rows.half[h] = _mm256_permutevar8x32_ps(sums, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  }
  return rows;
}

// acc[t][q] += numbers of register q, times inputs, for half of the registers (4 from `q0`) and `kTokens` tokens. Sums
// and inputs are all that registers have room for: numbers are read as they are multiplied.
template <ActivationType kActivation, int kTokens>
inline void add_numbers(const Activations& x, const float* numbers, int words, int t0, int64_t c, int q0,
                        __m256 (*acc)[8]) {
  __m256 sums[kTokens][4];
  decltype(inputs_from<kActivation>(x, 0, 0)) rows[kTokens];
  for (int t = 0; t < kTokens; ++t) {
    rows[t] = inputs_from<kActivation>(x, t0 + t, c);
    for (int q = 0; q < 4; ++q) sums[t][q] = acc[t][q0 + q];
  }
  for (int i = 0; i < words; ++i) {
    __m256 inputs[kTokens];
    for (int t = 0; t < kTokens; ++t) inputs[t] = inputs4(rows[t] + i * kWordCols);
    for (int q = 0; q < 4; ++q) {
      const __m256 eight = _mm256_loadu_ps(numbers + i * kWordBits + 8 * (q0 + q));
      for (int t = 0; t < kTokens; ++t) sums[t][q] = _mm256_fmadd_ps(eight, inputs[t], sums[t][q]);
    }
  }
  for (int t = 0; t < kTokens; ++t)
    for (int q = 0; q < 4; ++q) acc[t][q0 + q] = sums[t][q];
}

// Inputs whose numbers tokens share at a time where no scale cuts them shorter: a panel's take half of L1.
constexpr int kSharedCols = 256;

// y of one panel for up to kMost tokens. A lone token is multiplied as the values are expanded; more share what is
// expanded.
template <Layout kLayout, ValueType kType, ActivationType kActivation, bool kHigh, int kMost>
inline void float_panel(const LinearArgs& a, int panel, int t0, int tokens) {
  const WeightView& w = a.weight;
  Cursor at = panel_start(w, panel);
  const bool grouped = w.groups > 1;
  const int unit = w.group == 32 ? 32 : kBlockCols;  // inputs expanded at a time
  const int unit_words = unit / kWordCols;
  const int span = kMost == 1 || grouped ? unit : kSharedCols;
  const int cols = w.blocks * kBlockCols;
  __m256 acc[kMost][8];
  Rows totals[kMost];
  for (int t = 0; t < tokens; ++t) {
    for (int q = 0; q < 8; ++q) acc[t][q] = _mm256_setzero_ps();
    totals[t].half[0] = totals[t].half[1] = _mm256_setzero_ps();
  }
  for (int c = 0; c < cols; c += span) {
    if constexpr (kMost == 1) {
      const auto* row = inputs_from<kActivation>(a.x, t0, c);
      __m256 inputs;
      next_numbers<kLayout, kType, kHigh>(at, unit_words, [&](int i, int q, __m256 eight) {
        if (q == 0) inputs = inputs4(row + i * kWordCols);
        acc[0][q] = _mm256_fmadd_ps(eight, inputs, acc[0][q]);
      });
    } else {
      const int words = min_of(span, cols - c) / kWordCols;
      alignas(32) float expanded[kSharedCols / kWordCols * kWordBits];
      const float* numbers = expanded;
      if constexpr (kLayout == Layout::kDense && kType == ValueType::kF32) {
        numbers = (const float*)at.v;
        at.v += words * kWordBits * 4;
      } else {
        float* next = expanded;
        for (int i = 0; i < words; i += unit_words, next += unit_words * kWordBits) {
          next_numbers<kLayout, kType, kHigh>(at, unit_words, [&](int j, int q, __m256 eight) {
            _mm256_store_ps(next + j * kWordBits + 8 * q, eight);
          });
        }
      }
      for_tiles(tokens, [&](auto tile, int t) {
        for (int q = 0; q < 8; q += 4)
          add_numbers<kActivation, decltype(tile)::value>(a.x, numbers, words, t0 + t, c, q, acc + t);
      });
    }
    if (!grouped) continue;
    const Rows scale = load_scales(w, panel, group_of(w, c / unit, unit));
    for (int t = 0; t < tokens; ++t) {
      const Rows sums = sum_rows(acc[t]);
      for (int h = 0; h < 2; ++h) totals[t].half[h] = _mm256_fmadd_ps(sums.half[h], scale.half[h], totals[t].half[h]);
      for (int q = 0; q < 8; ++q) acc[t][q] = _mm256_setzero_ps();
    }
  }
  for (int t = 0; t < tokens; ++t) {
    if (!grouped) totals[t] = sum_rows(acc[t]);
    if (w.groups == 1) {
      const Rows scale = load_scales(w, panel, 0);
      for (int h = 0; h < 2; ++h) totals[t].half[h] = _mm256_mul_ps(totals[t].half[h], scale.half[h]);
    }
    store_rows(a, panel, t0 + t, totals[t]);
  }
}

template <Layout kLayout, ValueType kType, ActivationType kActivation, bool kHigh>
inline void float_tokens(const LinearArgs& a, int panel) {
  for (int t = 0; t < a.x.tokens; t += kMaxTokens) {
    const int tokens = min_of(kMaxTokens, a.x.tokens - t);
    if (tokens == 1)
      float_panel<kLayout, kType, kActivation, kHigh, 1>(a, panel, t, 1);
    else
      float_panel<kLayout, kType, kActivation, kHigh, kMaxTokens>(a, panel, t, tokens);
  }
}

template <Layout kLayout, ValueType kType, ActivationType kActivation = ActivationType::kF32>
inline void float_linear(const LinearArgs& a) {
  for (int s = a.begin; s < a.end; ++s) {
    if constexpr (kType == ValueType::kInt4) {
      float_tokens<kLayout, kType, kActivation, false>(a, 2 * s);
      if (2 * s + 1 < a.weight.panels) float_tokens<kLayout, kType, kActivation, true>(a, 2 * s + 1);
    } else {
      float_tokens<kLayout, kType, kActivation, false>(a, s);
    }
  }
}

}  // namespace GOSSAMER_NS
}  // namespace gossamer
