// AVX-512 bodies for f32 activations: a word is 4 registers, register q has rows 4q .. 4q + 3, 4 inputs each; and for
// bf16 ones with the BF16 dot product: a word is 2 registers of 8 rows x 2 pairs.
#pragma once

#include "kernels/cpu/tile_avx512-inl.h"

namespace gossamer {
namespace GOSSAMER_NS {

// The 16 numbers at v, before any scale. kHigh: the high nibbles.
template <ValueType kType, bool kHigh>
inline __m512 widen16(const uint8_t* v) {
  if constexpr (kType == ValueType::kF32) {
    return _mm512_loadu_ps(v);
  } else if constexpr (kType == ValueType::kBf16) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)v)), 16));
  } else if constexpr (kType == ValueType::kF16) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)v));
  } else if constexpr (kType == ValueType::kInt8) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)v)));
  } else {
    const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)v));
    const __m512i top = _mm512_slli_epi32(bytes, kHigh ? 24 : 28);  // the nibble in the sign's place
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(top, 28));
  }
}

template <ValueType kType>
constexpr int kValueBytes = kType == ValueType::kF32                                  ? 4
                            : (kType == ValueType::kBf16 || kType == ValueType::kF16) ? 2
                                                                                      : 1;

template <Layout kLayout, ValueType kType, bool kHigh>
inline void next_word(const uint64_t*& masks, const uint8_t*& v, int fixed_step, __m512 (&out)[4]) {
  constexpr int kBytes = kValueBytes<kType>;
  if constexpr (kLayout == Layout::kDense) {
    for (int q = 0; q < 4; ++q) out[q] = widen16<kType, kHigh>(v + q * 16 * kBytes);
    v += kWordBits * kBytes;
  } else {
    const uint64_t mask = *masks++;
    for (int q = 0; q < 4; ++q) {
      const __mmask16 part = (__mmask16)(mask >> (16 * q));
      out[q] = _mm512_maskz_expand_ps(part, widen16<kType, kHigh>(v));
      v += (kLayout == Layout::kFixed ? fixed_step / 4 : _mm_popcnt_u32(part)) * kBytes;
    }
  }
  _mm_prefetch((const char*)v + kPrefetch, _MM_HINT_T0);
  if constexpr (kBytes == 4) _mm_prefetch((const char*)v + kPrefetch + 64, _MM_HINT_T0);
}

// Sums each 128-bit part (one row's 4 lanes) and puts the rows in order.
inline __m512 sum_rows(const __m512 (&a)[4]) {
  const __m512 ab_low = _mm512_unpacklo_ps(a[0], a[1]);
  const __m512 ab_high = _mm512_unpackhi_ps(a[0], a[1]);
  const __m512 cd_low = _mm512_unpacklo_ps(a[2], a[3]);
  const __m512 cd_high = _mm512_unpackhi_ps(a[2], a[3]);
  const __m512 ab = _mm512_add_ps(ab_low, ab_high);  // a0 a1 a0 a1 in each part, two partial sums each
  const __m512 cd = _mm512_add_ps(cd_low, cd_high);
  const __m512 first = _mm512_shuffle_ps(ab, cd, 0x44);
  const __m512 second = _mm512_shuffle_ps(ab, cd, 0xee);
  const __m512 sums = _mm512_add_ps(first, second);  // part j, lane q: row 4q + j
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_ps(order, sums);
}

// Adds the sums of a finished scale group to the totals, and begins the next one at zero.
template <int kTokens>
inline __attribute__((always_inline)) void end_group(const WeightView& w, int panel, int group,
                                                     __m512 (&acc)[kTokens][4], __m512 (&total)[kTokens]) {
  const __m512 scale = load_scales(w, panel, group);
  for (int t = 0; t < kTokens; ++t) {
    total[t] = _mm512_fmadd_ps(sum_rows(acc[t]), scale, total[t]);
    for (int q = 0; q < 4; ++q) acc[t][q] = _mm512_setzero_ps();
  }
}

// Writes a panel's results: the totals of its groups, or, without groups, the sums of whole rows times their one scale.
template <int kTokens>
inline __attribute__((always_inline)) void store_sums(const LinearArgs& a, int panel, int t0, __m512 (&acc)[kTokens][4],
                                                      __m512 (&total)[kTokens]) {
  const WeightView& w = a.weight;
  const __mmask16 rows = rows_mask(w, panel);
  for (int t = 0; t < kTokens; ++t) {
    if (w.groups <= 1) total[t] = sum_rows(acc[t]);
    if (w.groups == 1) total[t] = _mm512_mul_ps(total[t], load_scales(w, panel, 0));
    _mm512_mask_storeu_ps(a.y + (t0 + t) * a.y_stride + panel * kPanelRows, rows, total[t]);
  }
}

// y for `kTokens` tokens from `t0`. `kHigh` says which nibble an int4 panel has.
template <Layout kLayout, ValueType kType, bool kHigh, int kTokens>
inline void float_panel(const LinearArgs& a, int panel, int t0) {
  const WeightView& w = a.weight;
  const uint8_t* v = stream_start(w, panel);
  const uint64_t* masks = kLayout == Layout::kDense ? nullptr : mask_start(w, panel);
  const int fixed_step = kPanelRows * w.n;
  const float* x = a.x.f32 + t0 * a.x.stride;
  __m512 acc[kTokens][4];
  __m512 total[kTokens];
  for (int t = 0; t < kTokens; ++t) {
    total[t] = _mm512_setzero_ps();
    for (int q = 0; q < 4; ++q) acc[t][q] = _mm512_setzero_ps();
  }
  const bool grouped = w.groups > 1;
  const int span = w.group == 32 ? 32 : kBlockCols;
  const int spans = w.blocks * (kBlockCols / span);
  for (int s = 0; s < spans; ++s) {
    for (int c = 0; c < span; c += kWordCols, x += kWordCols) {
      __m512 word[4];
      next_word<kLayout, kType, kHigh>(masks, v, fixed_step, word);
      for (int t = 0; t < kTokens; ++t) {
        const __m512 inputs = _mm512_broadcast_f32x4(_mm_loadu_ps(x + t * a.x.stride));
        for (int q = 0; q < 4; ++q) acc[t][q] = _mm512_fmadd_ps(word[q], inputs, acc[t][q]);
      }
    }
    if (grouped) {
      end_group(w, panel, group_of(w, s, span), acc, total);
    }
  }
  store_sums(a, panel, t0, acc, total);
}

// Tokens that share a block of expanded weights, the inputs of such a block, and the tokens of a tile, whose sums all
// stand in registers. A block, the tokens' sums and a tile's inputs fit the L1 cache together.
constexpr int kSharedTokens = 64;
constexpr int kSharedCols = 128;
constexpr int kTileTokens = 6;

// sums[t] += numbers of `words` words, times inputs, for `kTokens` tokens.
template <int kTokens>
inline void add_words(const float* numbers, int words, const float* x, int64_t stride, float (*sums)[kWordBits]) {
  __m512 acc[kTokens][4];
  for (int t = 0; t < kTokens; ++t)
    for (int q = 0; q < 4; ++q) acc[t][q] = _mm512_load_ps(sums[t] + 16 * q);
  for (int i = 0; i < words; ++i, numbers += kWordBits, x += kWordCols) {
    __m512 word[4];
    for (int q = 0; q < 4; ++q) word[q] = _mm512_loadu_ps(numbers + 16 * q);
    for (int t = 0; t < kTokens; ++t) {
      const __m512 inputs = _mm512_broadcast_f32x4(_mm_loadu_ps(x + t * stride));
      for (int q = 0; q < 4; ++q) acc[t][q] = _mm512_fmadd_ps(word[q], inputs, acc[t][q]);
    }
  }
  for (int t = 0; t < kTokens; ++t)
    for (int q = 0; q < 4; ++q) _mm512_store_ps(sums[t] + 16 * q, acc[t][q]);
}

// y for up to kSharedTokens tokens, in the same order of sums as float_panel.
template <Layout kLayout, ValueType kType, bool kHigh>
inline void float_panel_shared(const LinearArgs& a, int panel, int t0, int tokens) {
  const WeightView& w = a.weight;
  const uint8_t* v = stream_start(w, panel);
  const uint64_t* masks = kLayout == Layout::kDense ? nullptr : mask_start(w, panel);
  const int fixed_step = kPanelRows * w.n;
  alignas(64) float expanded[kSharedCols * kPanelRows];
  alignas(64) float sums[kSharedTokens][kWordBits];
  __m512 total[kSharedTokens][1];
  for (int t = 0; t < tokens; ++t) {
    total[t][0] = _mm512_setzero_ps();
    for (int q = 0; q < 4; ++q) _mm512_store_ps(sums[t] + 16 * q, _mm512_setzero_ps());
  }
  const bool grouped = w.groups > 1;
  const int span = !grouped ? kSharedCols : w.group == 32 ? 32 : kBlockCols;
  for (int c = 0; c < w.blocks * kBlockCols; c += span) {
    const int words = min_of(span, w.blocks * kBlockCols - c) / kWordCols;
    const float* numbers = expanded;
    if constexpr (kLayout == Layout::kDense && kType == ValueType::kF32) {
      numbers = (const float*)v;
      v += words * kWordBits * 4;
    } else {
      for (int i = 0; i < words; ++i) {
        __m512 word[4];
        next_word<kLayout, kType, kHigh>(masks, v, fixed_step, word);
        for (int q = 0; q < 4; ++q) _mm512_store_ps(expanded + i * kWordBits + 16 * q, word[q]);
      }
    }
    for_tiles<kTileTokens>(tokens, [&](auto tile, int t) {
      add_words<decltype(tile)::value>(numbers, words, a.x.f32 + (t0 + t) * a.x.stride + c, a.x.stride, sums + t);
    });
    for (int t = 0; grouped && t < tokens; ++t) {
      __m512 acc[1][4];
      for (int q = 0; q < 4; ++q) {
        acc[0][q] = _mm512_load_ps(sums[t] + 16 * q);
        _mm512_store_ps(sums[t] + 16 * q, _mm512_setzero_ps());
      }
      end_group(w, panel, group_of(w, c / span, span), acc, total[t]);
    }
  }
  for (int t = 0; t < tokens; ++t) {
    __m512 acc[1][4];
    for (int q = 0; q < 4; ++q) acc[0][q] = _mm512_load_ps(sums[t] + 16 * q);
    store_sums(a, panel, t0 + t, acc, total[t]);
  }
}

template <Layout kLayout, ValueType kType, bool kHigh>
inline void float_panel_tokens(const LinearArgs& a, int panel) {
  for (int t = 0; t < a.x.tokens; t += kSharedTokens) {
    const int tokens = min_of(kSharedTokens, a.x.tokens - t);
    if (tokens > 4)
      float_panel_shared<kLayout, kType, kHigh>(a, panel, t, tokens);
    else
      for_size<4>(tokens, [&](auto count) { float_panel<kLayout, kType, kHigh, decltype(count)::value>(a, panel, t); });
  }
}

template <Layout kLayout, ValueType kType>
inline void float_linear(const LinearArgs& a) {
  for (int s = a.begin; s < a.end; ++s) {
    if constexpr (kType == ValueType::kInt4) {
      float_panel_tokens<kLayout, kType, false>(a, 2 * s);
      if (2 * s + 1 < a.weight.panels) float_panel_tokens<kLayout, kType, true>(a, 2 * s + 1);
    } else {
      float_panel_tokens<kLayout, kType, false>(a, s);
    }
  }
}

#if defined(__AVX512BF16__)

// --- bf16 activations with the BF16 dot product: a word becomes 2 registers of 8 rows x 2 pairs ----------------------

// A word at its place in the streams.
template <Layout kLayout>
inline void next_pairs(const uint64_t*& masks, const uint8_t*& v, int fixed_step, __m512i (&out)[2]) {
  const uint64_t mask = kLayout == Layout::kDense ? 0 : *masks++;
  for (int h = 0; h < 2; ++h) {
    out[h] = _mm512_loadu_si512(v);
    if constexpr (kLayout == Layout::kDense) {
      v += 64;
    } else {
      const __mmask32 part = (__mmask32)(mask >> (32 * h));
      out[h] = _mm512_maskz_expand_epi16(part, out[h]);
      v += 2 * (kLayout == Layout::kFixed ? fixed_step / 2 : _mm_popcnt_u32(part));
    }
  }
  _mm_prefetch((const char*)v + kPrefetch, _MM_HINT_T0);
}

// acc[t] += the word `half`, times 4 inputs of each token.
template <int kTokens>
inline __attribute__((always_inline)) void add_pairs(const __m512i (&half)[2], const uint16_t* x, int64_t stride,
                                                     __m512 (&acc)[kTokens][2]) {
  for (int t = 0; t < kTokens; ++t) {
    int64_t four;
    __builtin_memcpy(&four, x + t * stride, 8);
    const __m512bh inputs = (__m512bh)_mm512_set1_epi64(four);
    for (int h = 0; h < 2; ++h) acc[t][h] = _mm512_dpbf16_ps(acc[t][h], (__m512bh)half[h], inputs);
  }
}

template <int kTokens>
inline void store_pair_sums(const LinearArgs& a, int panel, int t0, const __m512 (&acc)[kTokens][2]) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
  for (int t = 0; t < kTokens; ++t) {
    const __m512 sums = _mm512_add_ps(_mm512_permutex2var_ps(acc[t][0], even, acc[t][1]),
                                      _mm512_permutex2var_ps(acc[t][0], odd, acc[t][1]));
    _mm512_mask_storeu_ps(a.y + (t0 + t) * a.y_stride + panel * kPanelRows, rows_mask(a.weight, panel), sums);
  }
}

// y for `kTokens` tokens from `t0`.
template <Layout kLayout, int kTokens>
inline void bf16_panel(const LinearArgs& a, int panel, int t0) {
  const WeightView& w = a.weight;
  const uint8_t* v = stream_start(w, panel);
  const uint64_t* masks = kLayout == Layout::kDense ? nullptr : mask_start(w, panel);
  const int fixed_step = kPanelRows * w.n;
  const uint16_t* x = a.x.bf16 + t0 * a.x.stride;
  __m512 acc[kTokens][2];
  for (int t = 0; t < kTokens; ++t) acc[t][0] = acc[t][1] = _mm512_setzero_ps();
  for (int word = 0; word < w.blocks * kBlockWords; ++word, x += kWordCols) {
    __m512i half[2];
    next_pairs<kLayout>(masks, v, fixed_step, half);
    add_pairs<kTokens>(half, x, a.x.stride, acc);
  }
  store_pair_sums<kTokens>(a, panel, t0, acc);
}

constexpr int kTilePairs = 12;

// sums[t] += `words` expanded words, times inputs, for `kTokens` tokens.
template <int kTokens>
inline void add_pair_words(const uint8_t* pairs, int words, const uint16_t* x, int64_t stride,
                           float (*sums)[2 * kPanelRows]) {
  __m512 acc[kTokens][2];
  for (int t = 0; t < kTokens; ++t)
    for (int h = 0; h < 2; ++h) acc[t][h] = _mm512_load_ps(sums[t] + 16 * h);
  for (int i = 0; i < words; ++i, pairs += 128, x += kWordCols) {
    const __m512i half[2] = {_mm512_loadu_si512(pairs), _mm512_loadu_si512(pairs + 64)};
    add_pairs<kTokens>(half, x, stride, acc);
  }
  for (int t = 0; t < kTokens; ++t)
    for (int h = 0; h < 2; ++h) _mm512_store_ps(sums[t] + 16 * h, acc[t][h]);
}

// y for up to kSharedTokens tokens, in the same order of sums as bf16_panel.
template <Layout kLayout>
inline void bf16_panel_shared(const LinearArgs& a, int panel, int t0, int tokens) {
  const WeightView& w = a.weight;
  const uint8_t* v = stream_start(w, panel);
  const uint64_t* masks = kLayout == Layout::kDense ? nullptr : mask_start(w, panel);
  const int fixed_step = kPanelRows * w.n;
  alignas(64) uint8_t expanded[2 * kSharedCols * kPanelRows];
  alignas(64) float sums[kSharedTokens][2 * kPanelRows];
  for (int t = 0; t < tokens; ++t)
    for (int h = 0; h < 2; ++h) _mm512_store_ps(sums[t] + 16 * h, _mm512_setzero_ps());
  for (int c = 0; c < w.blocks * kBlockCols; c += kSharedCols) {
    const int words = min_of(kSharedCols, w.blocks * kBlockCols - c) / kWordCols;
    const uint8_t* pairs = expanded;
    if constexpr (kLayout == Layout::kDense) {
      pairs = v;
      v += words * 2 * kWordBits;
    } else {
      for (int i = 0; i < words; ++i) {
        __m512i half[2];
        next_pairs<kLayout>(masks, v, fixed_step, half);
        for (int h = 0; h < 2; ++h) _mm512_store_si512(expanded + 128 * i + 64 * h, half[h]);
      }
    }
    for_tiles<kTilePairs>(tokens, [&](auto tile, int t) {
      add_pair_words<decltype(tile)::value>(pairs, words, a.x.bf16 + (t0 + t) * a.x.stride + c, a.x.stride, sums + t);
    });
  }
  for (int t = 0; t < tokens; ++t) {
    const __m512 acc[1][2] = {{_mm512_load_ps(sums[t]), _mm512_load_ps(sums[t] + 16)}};
    store_pair_sums<1>(a, panel, t0 + t, acc);
  }
}

template <Layout kLayout>
inline void bf16_linear(const LinearArgs& a) {
  for (int panel = a.begin; panel < a.end; ++panel) {
    for (int t = 0; t < a.x.tokens; t += kSharedTokens) {
      const int tokens = min_of(kSharedTokens, a.x.tokens - t);
      if (tokens > 8)
        bf16_panel_shared<kLayout>(a, panel, t, tokens);
      else
        for_size<8>(tokens, [&](auto count) { bf16_panel<kLayout, decltype(count)::value>(a, panel, t); });
    }
  }
}

#endif  // BF16

}  // namespace GOSSAMER_NS
}  // namespace gossamer
