// AVX-512 bodies over the 16 x 4 tile, for the formats whose values lie in order of word and bit: dense, bitmap, nm.
#ifndef GOSSAMER_NS
#error "define GOSSAMER_NS first"
#endif
// GOSSAMER_NS is that object's namespace. Sums run along the inputs in one fixed order for every
// number of tokens.
#include <immintrin.h>
#include <stdint.h>

#include "kernels/linear_args.h"

namespace gossamer {
namespace GOSSAMER_NS {

// How the next word's values are found.
enum class Layout {
  kDense,   // 64 values a word
  kMasked,  // as many as the mask has bits
  kFixed,   // 16 * n a word: N:4
};

// Bytes ahead that are fetched, of values and of the thinner streams: far enough for memory, near enough to stay in L1.
constexpr int kPrefetch = 4096;
constexpr int kPrefetchThin = 1024;

inline const uint8_t* stream_start(const WeightView& w, int panel) {
  const int stream = w.type == ValueType::kInt4 ? panel / 2 : panel;
  return w.values + (w.offsets != nullptr ? w.offsets[stream] : (uint64_t)stream * (uint64_t)w.stride);
}

inline const uint64_t* mask_start(const WeightView& w, int panel) {
  return w.masks + (int64_t)panel * w.blocks * kBlockWords;
}

inline __mmask16 rows_mask(const WeightView& w, int panel) {
  const int rows = w.rows - panel * kPanelRows;
  return rows >= kPanelRows ? (__mmask16)0xffff : (__mmask16)((1U << rows) - 1);
}

inline __m512 load_scales(const WeightView& w, int panel, int group) {
  const uint16_t* scales = w.scales + ((int64_t)panel * w.groups + group) * kPanelRows;
  _mm_prefetch((const char*)scales + kPrefetchThin, _MM_HINT_T0);
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)scales));
}

// Scale group of a unit of `unit_cols` inputs.
inline int group_of(const WeightView& w, int unit, int unit_cols) {
  return w.group == 0 ? 0 : (unit * unit_cols) >> __builtin_ctz((unsigned)w.group);
}

// --- f32 and bf16 activations: a word becomes 4 registers, register q has rows 4q .. 4q + 3, 4 inputs each
// --------------

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

template <Layout kLayout, ValueType kType, bool kHigh>
inline void float_panel_tokens(const LinearArgs& a, int panel) {
  int t = 0;
  for (; t + 4 <= a.x.tokens; t += 4) float_panel<kLayout, kType, kHigh, 4>(a, panel, t);
  if (t + 2 <= a.x.tokens) {
    float_panel<kLayout, kType, kHigh, 2>(a, panel, t);
    t += 2;
  }
  if (t < a.x.tokens) float_panel<kLayout, kType, kHigh, 1>(a, panel, t);
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

#if defined(__AVX512VBMI2__) && defined(__AVX512VNNI__)

// --- 8-bit activations: a word becomes one register of unsigned codes, a dot product takes 4 inputs of 16 rows
// -----------

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

inline __m512i broadcast4(const int8_t* codes) {
  int32_t four;
  __builtin_memcpy(&four, codes, 4);
  return _mm512_set1_epi32(four);
}

// y for `kTokens` tokens from `t0`, of panel `panel`, and of the next one too when kPanels == 2 (the two nibbles of
// int4). Integer sums are exact, so a lone token may spread them over several registers.
template <Layout kLayout, ValueType kType, bool kFirstHigh, int kPanels, int kTokens>
inline void a8_panels(const LinearArgs& a, int panel, int t0) {
  const WeightView& w = a.weight;
  constexpr bool kLastHigh = kPanels == 2 || kFirstHigh;
  constexpr int kChains = kTokens == 1 ? (kPanels == 1 ? 4 : 2) : kTokens == 2 && kPanels == 1 ? 2 : 1;
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
  const int32_t* unit_sums = a.x.unit_sums + t0 * a.x.unit_stride;
  for (int u = 0; u < units; ++u) {
    if constexpr (kLayout != Layout::kDense) {
      for (int p = 0; p < kPanels; ++p)
        for (int line = 0; line < unit / kWordCols; line += 8)
          _mm_prefetch((const char*)(masks[p] + line) + kPrefetchThin, _MM_HINT_T0);
    }
    __m512i acc[kPanels][kTokens][kChains];
    for (int p = 0; p < kPanels; ++p)
      for (int t = 0; t < kTokens; ++t)
        for (int i = 0; i < kChains; ++i) acc[p][t][i] = _mm512_setzero_si512();
    for (int c = 0; c < unit; c += kChains * kWordCols) {
#pragma GCC unroll 4
      for (int i = 0; i < kChains; ++i, x += kWordCols) {
        const __m512i first = next_codes<kLayout, kType, kFirstHigh>(masks[0], v[0], fixed_step);
        for (int t = 0; t < kTokens; ++t)
          acc[0][t][i] = _mm512_dpbusd_epi32(acc[0][t][i], first, broadcast4(x + t * a.x.stride));
        if constexpr (kPanels == 2) {
          const __m512i second = next_codes<kLayout, kType, kLastHigh>(masks[1], v[1], fixed_step);
          for (int t = 0; t < kTokens; ++t)
            acc[1][t][i] = _mm512_dpbusd_epi32(acc[1][t][i], second, broadcast4(x + t * a.x.stride));
        }
        // Two words with zeros seldom hold more than a line of values.
        if (kLayout == Layout::kDense || i % 2 == 0) _mm_prefetch((const char*)v[0] + kPrefetch, _MM_HINT_T0);
      }
    }
    for (int p = 0; p < kPanels; ++p) {
      const float place = p == 1 || kFirstHigh ? 0.0625F : 1.0F;
      const __m512 scale = grouped ? load_scales(w, panel + p, group_of(w, u, unit)) : _mm512_set1_ps(1.0F);
      constexpr int kFirstBits = kBiasBits<kType, kFirstHigh>;
      constexpr int kLastBits = kBiasBits<kType, kLastHigh>;
      for (int t = 0; t < kTokens; ++t) {
        const __m512i activations = _mm512_set1_epi32(unit_sums[t * a.x.unit_stride + u]);
        __m512i sum = _mm512_slli_epi32(activations, p == 0 ? kFirstBits : kLastBits);
        sum = _mm512_sub_epi32(acc[p][t][0], sum);
        for (int i = 1; i < kChains; ++i) sum = _mm512_add_epi32(sum, acc[p][t][i]);
        const __m512 factor = _mm512_mul_ps(scale, _mm512_set1_ps(unit_scales[t * a.x.unit_stride + u] * place));
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

template <Layout kLayout, ValueType kType, bool kHigh, int kPanels, int kMost>
inline void a8_tokens(const LinearArgs& a, int panel) {
  int t = 0;
  for (; t + kMost <= a.x.tokens; t += kMost) a8_panels<kLayout, kType, kHigh, kPanels, kMost>(a, panel, t);
  if constexpr (kMost > 8) {
    if (t + 8 <= a.x.tokens) {
      a8_panels<kLayout, kType, kHigh, kPanels, 8>(a, panel, t);
      t += 8;
    }
  }
  if constexpr (kMost > 4) {
    if (t + 4 <= a.x.tokens) {
      a8_panels<kLayout, kType, kHigh, kPanels, 4>(a, panel, t);
      t += 4;
    }
  }
  if (t + 2 <= a.x.tokens) {
    a8_panels<kLayout, kType, kHigh, kPanels, 2>(a, panel, t);
    t += 2;
  }
  if (t < a.x.tokens) a8_panels<kLayout, kType, kHigh, kPanels, 1>(a, panel, t);
}

template <Layout kLayout, ValueType kType>
inline void a8_linear(const LinearArgs& a) {
  for (int s = a.begin; s < a.end; ++s) {
    if constexpr (kType == ValueType::kInt4) {
      if (2 * s + 1 == a.weight.panels) {
        a8_tokens<kLayout, kType, false, 1, 16>(a, 2 * s);
      } else if (a.x.tokens <= 8) {
        a8_tokens<kLayout, kType, false, 2, 8>(a, 2 * s);
      } else {
        a8_tokens<kLayout, kType, false, 1, 16>(a, 2 * s);
        a8_tokens<kLayout, kType, true, 1, 16>(a, 2 * s + 1);
      }
    } else {
      a8_tokens<kLayout, kType, false, 1, 16>(a, s);
    }
  }
}

#endif  // VBMI2, VNNI

#if defined(__AVX512BF16__)

// --- bf16 activations with the BF16 dot product: a word becomes 2 registers of 8 rows x 2 pairs
// --------------------------

template <Layout kLayout, int kTokens>
inline void bf16_panel(const LinearArgs& a, int panel, int t0) {
  const WeightView& w = a.weight;
  const uint8_t* v = stream_start(w, panel);
  const uint64_t* masks = kLayout == Layout::kDense ? nullptr : mask_start(w, panel);
  const uint16_t* x = a.x.bf16 + t0 * a.x.stride;
  __m512 acc[kTokens][2];
  for (int t = 0; t < kTokens; ++t) acc[t][0] = acc[t][1] = _mm512_setzero_ps();
  for (int word = 0; word < w.blocks * kBlockWords; ++word, x += kWordCols) {
    const uint64_t mask = kLayout == Layout::kDense ? 0 : *masks++;
    __m512i half[2];
    for (int h = 0; h < 2; ++h) {
      half[h] = _mm512_loadu_si512(v);
      if constexpr (kLayout == Layout::kDense) {
        v += 64;
      } else {
        const __mmask32 part = (__mmask32)(mask >> (32 * h));
        half[h] = _mm512_maskz_expand_epi16(part, half[h]);
        v += 2 * (kLayout == Layout::kFixed ? kPanelRows * w.n / 2 : _mm_popcnt_u32(part));
      }
    }
    _mm_prefetch((const char*)v + kPrefetch, _MM_HINT_T0);
    for (int t = 0; t < kTokens; ++t) {
      int64_t four;
      __builtin_memcpy(&four, x + t * a.x.stride, 8);
      const __m512bh inputs = (__m512bh)_mm512_set1_epi64(four);
      for (int h = 0; h < 2; ++h) acc[t][h] = _mm512_dpbf16_ps(acc[t][h], (__m512bh)half[h], inputs);
    }
  }
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
  for (int t = 0; t < kTokens; ++t) {
    const __m512 sums = _mm512_add_ps(_mm512_permutex2var_ps(acc[t][0], even, acc[t][1]),
                                      _mm512_permutex2var_ps(acc[t][0], odd, acc[t][1]));
    _mm512_mask_storeu_ps(a.y + (t0 + t) * a.y_stride + panel * kPanelRows, rows_mask(w, panel), sums);
  }
}

template <Layout kLayout>
inline void bf16_linear(const LinearArgs& a) {
  for (int panel = a.begin; panel < a.end; ++panel) {
    int t = 0;
    for (; t + 8 <= a.x.tokens; t += 8) bf16_panel<kLayout, 8>(a, panel, t);
    for (; t + 2 <= a.x.tokens; t += 2) bf16_panel<kLayout, 2>(a, panel, t);
    if (t < a.x.tokens) bf16_panel<kLayout, 1>(a, panel, t);
  }
}

#endif  // BF16

}  // namespace GOSSAMER_NS
}  // namespace gossamer

// Both ops of one pair of types; `body` takes the arguments `a`.
#define GOSSAMER_DEFINE_PAIR(format, weight, activation, isa, body)                             \
  void format##_matvec_##weight##_##activation##__##isa(const LinearArgs& a) noexcept { body; } \
  void format##_matmul_##weight##_##activation##__##isa(const LinearArgs& a) noexcept { body; }
