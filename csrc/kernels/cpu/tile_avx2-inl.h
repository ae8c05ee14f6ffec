// AVX2 bodies over the 16 x 4 tile, for the formats whose values lie in order of word and bit: dense, bitmap, nm.
//
// AVX2 has no expand instruction: values are put in their places with a byte shuffle, whose control is computed for 8-bit
// codes and looked up for wider values. A block is expanded once and multiplied with every token of the call. Sums run
// along the inputs in one fixed order for every number of tokens.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "kernels/linear_args.h"

namespace gossamer {
namespace avx2 {

// How the next word's values are found.
enum class Layout {
  kDense,   // 64 values a word
  kMasked,  // as many as the mask has bits
  kFixed,   // 16 * n a word: N:4
};

// Bytes ahead of the value stream that are fetched: far enough for memory, near enough to stay in L1.
constexpr int kPrefetch = 4096;

// A panel's values and masks from the next word on.
struct Cursor {
  const uint8_t* v;
  const uint64_t* masks;
  int n;  // of an N:4 pattern
};

inline Cursor panel_start(const WeightView& w, int panel) {
  const int stream = w.type == ValueType::kInt4 ? panel / 2 : panel;
  const int64_t offset = w.offsets != nullptr ? (int64_t)w.offsets[stream] : stream * w.stride;
  const uint64_t* masks = w.masks == nullptr ? nullptr : w.masks + (int64_t)panel * w.blocks * kBlockWords;
  return {w.values + offset, masks, w.n};
}

// Two registers, one number for each of a panel's 16 rows.
struct Rows {
  __m256 half[2];
};

inline Rows load_scales(const WeightView& w, int panel, int group) {
  const uint16_t* scales = w.scales + ((int64_t)panel * w.groups + group) * kPanelRows;
  return {{_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)scales)),
           _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(scales + 8)))}};
}

// Scale group of a unit of `unit_cols` inputs.
inline int group_of(const WeightView& w, int unit, int unit_cols) { return w.group == 0 ? 0 : unit * unit_cols / w.group; }

inline void store_rows(const LinearArgs& a, int panel, int token, const Rows& rows) {
  float* y = a.y + token * a.y_stride + panel * kPanelRows;
  const int count = a.weight.rows - panel * kPanelRows;
  if (count >= kPanelRows) {
    _mm256_storeu_ps(y, rows.half[0]);
    _mm256_storeu_ps(y + 8, rows.half[1]);
    return;
  }
  alignas(32) float all[kPanelRows];
  _mm256_store_ps(all, rows.half[0]);
  _mm256_store_ps(all + 8, rows.half[1]);
  for (int r = 0; r < count; ++r) y[r] = all[r];
}

inline int min_of(int a, int b) { return a < b ? a : b; }

// --- expanding bytes ----------------------------------------------------------------------------------------------------

// Codes are expanded a span at a time.
constexpr int kSpanWords = 8;
constexpr int kSpanCols = kSpanWords * kWordCols;
constexpr int kSpanBytes = kSpanWords * kWordBits;

// Shuffle controls come from the mask alone, for four words at a time. A 128-bit half of an expanded word is 4 rows, whose
// values lie in 16 consecutive bytes; row r of them begins where the rows before it end. A control byte per row:
// bit 7: input 3 is not stored; bits 6..4: inputs 2..0 are stored; bits 3..0: where the row's values begin, from 0 to 12.
template <Layout kLayout>
inline void row_controls(const uint64_t* masks, int n, uint8_t (*rows)[kPanelRows]) {
  const __m256i low = _mm256_set1_epi8(0x0f);
  const __m256i high = _mm256_set1_epi8((char)0xf0);
  for (int i = 0; i < kSpanWords; i += 4) {
    const __m256i mask = _mm256_loadu_si256((const __m256i*)(masks + i));
    __m256i begins;  // a nibble a row
    if constexpr (kLayout == Layout::kFixed) {
      begins = _mm256_set1_epi16((short)(n * 0x3210));
    } else {
      const __m256i pairs = _mm256_sub_epi8(mask, _mm256_and_si256(_mm256_srli_epi16(mask, 1), _mm256_set1_epi8(0x55)));
      const __m256i twos = _mm256_set1_epi8(0x33);
      const __m256i counts =
          _mm256_add_epi8(_mm256_and_si256(pairs, twos), _mm256_and_si256(_mm256_srli_epi16(pairs, 2), twos));
      begins = _mm256_mullo_epi16(counts, _mm256_set1_epi16(0x1110));  // sums of the nibbles below
    }
    const __m256i bits = _mm256_xor_si256(mask, _mm256_set1_epi8((char)0x88));
    const __m256i even = _mm256_or_si256(_mm256_and_si256(_mm256_slli_epi16(bits, 4), high), _mm256_and_si256(begins, low));
    const __m256i odd = _mm256_or_si256(_mm256_and_si256(bits, high), _mm256_and_si256(_mm256_srli_epi16(begins, 4), low));
    const __m256i first = _mm256_unpacklo_epi8(even, odd);   // words i, i + 2
    const __m256i second = _mm256_unpackhi_epi8(even, odd);  // words i + 1, i + 3
    _mm_store_si128((__m128i*)rows[i], _mm256_castsi256_si128(first));
    _mm_store_si128((__m128i*)rows[i + 1], _mm256_castsi256_si128(second));
    _mm_store_si128((__m128i*)rows[i + 2], _mm256_extracti128_si256(first, 1));
    _mm_store_si128((__m128i*)rows[i + 3], _mm256_extracti128_si256(second, 1));
  }
}

// From the control bytes of 8 rows, four copies each, to the control of the shuffle: per row, where inputs 0..3 lie.
inline __m256i shuffle_control(__m256i rows) {
  // By the bits of inputs 2..0: how many inputs before, or 0x80 where nothing is stored. Input 3 brings its own 0x80.
  const __m256i before = _mm256_setr_epi32(0x00808080, 0x01808000, 0x01800080, 0x02800100, 0x01008080, 0x02018000, 0x02010080, 0x03020100);
  const __m256i which = _mm256_srli_epi32(rows, 4);
  return _mm256_add_epi8(_mm256_and_si256(rows, _mm256_set1_epi32((int)0xff7f7f7f)), _mm256_permutevar8x32_epi32(before, which));
}

inline __m256i load_halves(const uint8_t* first, const uint8_t* second) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i*)first)),
                                 _mm_loadu_si128((const __m128i*)second), 1);
}

// Codes from bytes as they are stored: int8 as it is, int4 as code + 8.
template <ValueType kType, bool kHigh>
inline __m256i codes_of(__m256i bytes) {
  if constexpr (kType == ValueType::kInt8) return bytes;
  if constexpr (kHigh) bytes = _mm256_srli_epi16(bytes, 4);
  return _mm256_xor_si256(_mm256_and_si256(bytes, _mm256_set1_epi8(0x0f)), _mm256_set1_epi8(8));
}

// Hands the 64 codes of each word of the next span to use(word, rows 0..7, rows 8..15).
template <Layout kLayout, ValueType kType, bool kHigh, class Use>
inline void next_codes(Cursor& at, const Use& use) {
  const uint8_t* v = at.v;
  if constexpr (kLayout == Layout::kDense) {
    for (int i = 0; i < kSpanWords; ++i, v += kWordBits) {
      _mm_prefetch((const char*)v + kPrefetch, _MM_HINT_T0);
      use(i, codes_of<kType, kHigh>(_mm256_loadu_si256((const __m256i*)v)),
          codes_of<kType, kHigh>(_mm256_loadu_si256((const __m256i*)(v + 32))));
    }
  } else {
    alignas(32) uint8_t rows[kSpanWords][kPanelRows];
    row_controls<kLayout>(at.masks, at.n, rows);
    const __m256i first_rows = _mm256_setr_epi8(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7);
    const __m256i last_rows = _mm256_or_si256(first_rows, _mm256_set1_epi8(8));
#pragma GCC unroll 8
    for (int i = 0; i < kSpanWords; ++i) {
      int64_t begin[5] = {};  // of each 4 rows' values
      if constexpr (kLayout == Layout::kFixed) {
        for (int q = 1; q <= 4; ++q) begin[q] = 4 * q * at.n;
      } else {
        const uint64_t mask = at.masks[i];
        begin[1] = _mm_popcnt_u64((uint16_t)mask);
        begin[2] = _mm_popcnt_u64((uint32_t)mask);
        begin[3] = _mm_popcnt_u64(_bzhi_u64(mask, 48));
        begin[4] = _mm_popcnt_u64(mask);
      }
      const __m256i row = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i*)rows[i]));
      const __m256i first = _mm256_shuffle_epi8(load_halves(v, v + begin[1]), shuffle_control(_mm256_shuffle_epi8(row, first_rows)));
      const __m256i second =
          _mm256_shuffle_epi8(load_halves(v + begin[2], v + begin[3]), shuffle_control(_mm256_shuffle_epi8(row, last_rows)));
      v += begin[4];
      _mm_prefetch((const char*)v + kPrefetch, _MM_HINT_T0);
      use(i, codes_of<kType, kHigh>(first), codes_of<kType, kHigh>(second));
    }
    at.masks += kSpanWords;
  }
  at.v = v;
}

template <Layout kLayout, ValueType kType, bool kHigh>
inline void store_codes(Cursor& at, uint8_t* out) {
  next_codes<kLayout, kType, kHigh>(at, [=](int i, __m256i first, __m256i second) {
    _mm256_store_si256((__m256i*)(out + i * kWordBits), first);
    _mm256_store_si256((__m256i*)(out + i * kWordBits + 32), second);
  });
}

// --- 8-bit activations: a word is two registers of 8 rows x 4 inputs ----------------------------------------------------

inline __m256i broadcast4(const int8_t* codes) {
  int32_t four;
  __builtin_memcpy(&four, codes, 4);
  return _mm256_set1_epi32(four);
}

// Tokens whose sums stay in registers.
constexpr int kTile = 3;

// Adds words of a span to 32-bit sums (int8), or to 16-bit ones that hold a whole span (int4).
template <ValueType kType>
inline __m256i add_products(__m256i sum, __m256i codes, __m256i inputs) {
  __asm__("" : "+x"(sum));  // one addition after the other: gathering the products first would spill them
  if constexpr (kType == ValueType::kInt4) {
    // Codes are 0..15 and |x| <= 127: the sum of 8 words' pairs, at most 30480, fits 16 bits.
    return _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, inputs));
  } else {
    // |w| <= 128 and |x| <= 127: the sum of two products fits 16 bits.
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(inputs, codes));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
}

template <ValueType kType>
inline __m256i widen_sum(__m256i sum) {
  return kType == ValueType::kInt4 ? _mm256_madd_epi16(sum, _mm256_set1_epi16(1)) : sum;
}

// Exact sums of a unit for `kTokens` tokens, 16 rows each; without the surplus of int4 codes.
template <int kTokens>
struct Sums {
  __m256i rows[kTokens][2];
};

// A unit of one token, multiplied as it is expanded.
template <Layout kLayout, ValueType kType, bool kHigh>
inline Sums<1> dot_next(Cursor& at, int spans, const int8_t* x) {
  Sums<1> sums = {{{_mm256_setzero_si256(), _mm256_setzero_si256()}}};
  for (int s = 0; s < spans; ++s, x += kSpanCols) {
    __m256i first = _mm256_setzero_si256();
    __m256i second = _mm256_setzero_si256();
    next_codes<kLayout, kType, kHigh>(at, [&](int i, __m256i first_codes, __m256i second_codes) {
      const __m256i inputs = broadcast4(x + i * kWordCols);
      first = add_products<kType>(first, first_codes, inputs);
      second = add_products<kType>(second, second_codes, inputs);
    });
    sums.rows[0][0] = _mm256_add_epi32(sums.rows[0][0], widen_sum<kType>(first));
    sums.rows[0][1] = _mm256_add_epi32(sums.rows[0][1], widen_sum<kType>(second));
  }
  return sums;
}

// A unit of `kTokens` tokens from x, of codes that are expanded already.
template <ValueType kType, int kTokens>
inline Sums<kTokens> dot_stored(const uint8_t* codes, int spans, const int8_t* x, int64_t stride) {
  Sums<kTokens> sums;
  for (int t = 0; t < kTokens; ++t) sums.rows[t][0] = sums.rows[t][1] = _mm256_setzero_si256();
  for (int s = 0; s < spans; ++s) {
    __m256i span[kTokens][2];
    for (int t = 0; t < kTokens; ++t) span[t][0] = span[t][1] = _mm256_setzero_si256();
#pragma GCC unroll 2
    for (int i = 0; i < kSpanWords; ++i, codes += kWordBits, x += kWordCols) {
      const __m256i first = _mm256_load_si256((const __m256i*)codes);
      const __m256i second = _mm256_load_si256((const __m256i*)(codes + 32));
      for (int t = 0; t < kTokens; ++t) {
        const __m256i inputs = broadcast4(x + t * stride);
        span[t][0] = add_products<kType>(span[t][0], first, inputs);
        span[t][1] = add_products<kType>(span[t][1], second, inputs);
      }
    }
    for (int t = 0; t < kTokens; ++t)
      for (int h = 0; h < 2; ++h) sums.rows[t][h] = _mm256_add_epi32(sums.rows[t][h], widen_sum<kType>(span[t][h]));
  }
  return sums;
}

// Adds the sums of unit u of the tokens from t to their totals.
template <ValueType kType, int kTokens>
inline void add_unit(const Activations& x, const Sums<kTokens>& sums, const Rows& scale, int u, int t, Rows* totals) {
  for (int i = 0; i < kTokens; ++i) {
    const int64_t at = (t + i) * x.unit_stride + u;
    const __m256i surplus = _mm256_set1_epi32(kType == ValueType::kInt4 ? 8 * x.unit_sums[at] : 0);
    const __m256 unit_scale = _mm256_set1_ps(x.unit_scales[at]);
    for (int h = 0; h < 2; ++h) {
      const __m256 sum = _mm256_cvtepi32_ps(_mm256_sub_epi32(sums.rows[i][h], surplus));
      totals[i].half[h] = _mm256_fmadd_ps(sum, _mm256_mul_ps(scale.half[h], unit_scale), totals[i].half[h]);
    }
  }
}

// y of panel `panel`, and of the next one too when kPanels == 2 (the two nibbles of int4), for up to kMost tokens. A lone
// token is multiplied as the codes are expanded; more share an expanded unit.
template <Layout kLayout, ValueType kType, int kPanels, int kMost>
inline void a8_panels(const LinearArgs& a, int panel, int t0, int tokens) {
  const WeightView& w = a.weight;
  const Activations& x = a.x;
  const int spans = x.unit / kSpanCols;
  const int units = w.blocks * (kBlockCols / x.unit);
  const bool grouped = w.groups > 1;
  const Rows one = {{_mm256_set1_ps(1.0F), _mm256_set1_ps(1.0F)}};
  Cursor at[kPanels];
  Rows totals[kPanels][kMost];
  for (int p = 0; p < kPanels; ++p) {
    at[p] = panel_start(w, panel + p);
    for (int t = 0; t < tokens; ++t) totals[p][t].half[0] = totals[p][t].half[1] = _mm256_setzero_ps();
  }
  for (int u = 0; u < units; ++u) {
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; ++p) {
      const Rows scale = grouped ? load_scales(w, panel + p, group_of(w, u, x.unit)) : one;
      const auto codes = [&](int t) { return x.codes + (t0 + t) * x.stride + (int64_t)u * x.unit; };
      if constexpr (kMost == 1) {
        const Sums<1> sums = p == 0 ? dot_next<kLayout, kType, false>(at[0], spans, codes(0))
                                    : dot_next<kLayout, kType, true>(at[kPanels - 1], spans, codes(0));
        add_unit<kType, 1>(x, sums, scale, u, t0, totals[p]);
      } else {
        alignas(32) uint8_t unit[kBlockWords * kWordBits];
        for (int s = 0; s < spans; ++s) {
          if (p == 0)
            store_codes<kLayout, kType, false>(at[0], unit + s * kSpanBytes);
          else
            store_codes<kLayout, kType, true>(at[kPanels - 1], unit + s * kSpanBytes);
        }
        int t = 0;
        for (; t + kTile <= tokens; t += kTile)
          add_unit<kType, kTile>(x, dot_stored<kType, kTile>(unit, spans, codes(t), x.stride), scale, u, t0 + t, totals[p] + t);
        for (; t < tokens; ++t)
          add_unit<kType, 1>(x, dot_stored<kType, 1>(unit, spans, codes(t), x.stride), scale, u, t0 + t, totals[p] + t);
      }
    }
  }
  for (int p = 0; p < kPanels; ++p) {
    const Rows scale = grouped ? one : load_scales(w, panel + p, 0);
    for (int t = 0; t < tokens; ++t) {
      Rows& total = totals[p][t];
      for (int h = 0; h < 2; ++h) total.half[h] = _mm256_mul_ps(total.half[h], scale.half[h]);
      store_rows(a, panel + p, t0 + t, total);
    }
  }
}

template <Layout kLayout, ValueType kType, int kPanels>
inline void a8_tokens(const LinearArgs& a, int panel) {
  for (int t = 0; t < a.x.tokens; t += kMaxTokens) {
    const int tokens = min_of(kMaxTokens, a.x.tokens - t);
    if (tokens == 1)
      a8_panels<kLayout, kType, kPanels, 1>(a, panel, t, 1);
    else
      a8_panels<kLayout, kType, kPanels, kMaxTokens>(a, panel, t, tokens);
  }
}

template <Layout kLayout, ValueType kType>
inline void a8_linear(const LinearArgs& a) {
  for (int s = a.begin; s < a.end; ++s) {
    if constexpr (kType == ValueType::kInt4) {
      if (2 * s + 1 < a.weight.panels)
        a8_tokens<kLayout, kType, 2>(a, 2 * s);
      else
        a8_tokens<kLayout, kType, 1>(a, 2 * s);
    } else {
      a8_tokens<kLayout, kType, 1>(a, s);
    }
  }
}

// --- f32 and bf16 activations: a word is 8 registers, register q has rows 2q and 2q + 1, 4 inputs each -------------------

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
constexpr int kValueBytes = kType == ValueType::kF32 ? 4 : (kType == ValueType::kBf16 || kType == ValueType::kF16) ? 2 : 1;

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
        const __m256i wide = kType == ValueType::kInt8 ? _mm256_cvtepi8_epi32(eight)
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
          const int64_t before = kLayout == Layout::kFixed ? 2 * q * at.n : _mm_popcnt_u64(_bzhi_u64(mask, (unsigned)(8 * q)));
          use(i, q, expand_eight<kType>(v + before * kBytes, (unsigned)(mask >> (8 * q)) & 0xffU));
        }
      }
      v += kBytes * (kLayout == Layout::kDense ? kWordBits : kLayout == Layout::kFixed ? 16 * at.n : _mm_popcnt_u64(mask));
      for (int line = 0; line < kBytes; ++line) _mm_prefetch((const char*)v + kPrefetch + 64 * line, _MM_HINT_T0);
    }
    at.v = v;
    if constexpr (kLayout != Layout::kDense) at.masks += words;
  }
}

// 4 inputs of a token from input c on, twice.
template <ActivationType kActivation>
inline __m256 inputs4(const Activations& x, int token, int64_t c) {
  const int64_t at = token * x.stride + c;
  if constexpr (kActivation == ActivationType::kF32) {
    return _mm256_broadcast_ps((const __m128*)(x.f32 + at));
  } else {
    int64_t four;
    __builtin_memcpy(&four, x.bf16 + at, 8);
    const __m256i to_high_half = _mm256_setr_epi8(-1, -1, 0, 1, -1, -1, 2, 3, -1, -1, 4, 5, -1, -1, 6, 7,  //
                                                  -1, -1, 0, 1, -1, -1, 2, 3, -1, -1, 4, 5, -1, -1, 6, 7);
    return _mm256_castsi256_ps(_mm256_shuffle_epi8(_mm256_set1_epi64x(four), to_high_half));
  }
}

// Sums each 128-bit part (one row's 4 lanes) and puts the rows in order.
inline Rows sum_rows(const __m256* acc) {
  Rows rows;
  for (int h = 0; h < 2; ++h) {
    const __m256* a = acc + 4 * h;
    const __m256 sums = _mm256_hadd_ps(_mm256_hadd_ps(a[0], a[1]), _mm256_hadd_ps(a[2], a[3]));  // even rows, then odd ones
    rows.half[h] = _mm256_permutevar8x32_ps(sums, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  }
  return rows;
}

// acc[t][q] += numbers of register q, times inputs, for half of the registers (4 from `q0`) and `kTokens` tokens.
template <ActivationType kActivation, int kTokens>
inline void add_numbers(const Activations& x, const float* numbers, int words, int t0, int64_t c, int q0, __m256 (*acc)[8]) {
  __m256 sums[kTokens][4];
  for (int t = 0; t < kTokens; ++t)
    for (int q = 0; q < 4; ++q) sums[t][q] = acc[t][q0 + q];
  for (int i = 0; i < words; ++i, c += kWordCols) {
    __m256 word[4];
    for (int q = 0; q < 4; ++q) word[q] = _mm256_load_ps(numbers + i * kWordBits + 8 * (q0 + q));
    for (int t = 0; t < kTokens; ++t) {
      const __m256 inputs = inputs4<kActivation>(x, t0 + t, c);
      for (int q = 0; q < 4; ++q) sums[t][q] = _mm256_fmadd_ps(word[q], inputs, sums[t][q]);
    }
  }
  for (int t = 0; t < kTokens; ++t)
    for (int q = 0; q < 4; ++q) acc[t][q0 + q] = sums[t][q];
}

// y of one panel for up to kMost tokens. A lone token is multiplied as the values are expanded; more share an expanded block.
template <Layout kLayout, ValueType kType, ActivationType kActivation, bool kHigh, int kMost>
inline void float_panel(const LinearArgs& a, int panel, int t0, int tokens) {
  const WeightView& w = a.weight;
  Cursor at = panel_start(w, panel);
  const bool grouped = w.groups > 1;
  const int span = w.group == 32 ? 32 : kBlockCols;
  const int spans = w.blocks * (kBlockCols / span);
  const int words = span / kWordCols;
  __m256 acc[kMost][8];
  Rows totals[kMost];
  for (int t = 0; t < tokens; ++t) {
    for (int q = 0; q < 8; ++q) acc[t][q] = _mm256_setzero_ps();
    totals[t].half[0] = totals[t].half[1] = _mm256_setzero_ps();
  }
  for (int s = 0; s < spans; ++s) {
    const int64_t c = (int64_t)s * span;
    if constexpr (kMost == 1) {
      __m256 inputs;
      next_numbers<kLayout, kType, kHigh>(at, words, [&](int i, int q, __m256 eight) {
        if (q == 0) inputs = inputs4<kActivation>(a.x, t0, c + i * kWordCols);
        acc[0][q] = _mm256_fmadd_ps(eight, inputs, acc[0][q]);
      });
    } else {
      alignas(32) float numbers[kBlockWords * kWordBits];
      next_numbers<kLayout, kType, kHigh>(
          at, words, [&](int i, int q, __m256 eight) { _mm256_store_ps(numbers + i * kWordBits + 8 * q, eight); });
      for (int q = 0; q < 8; q += 4) {
        int t = 0;
        for (; t + kTile <= tokens; t += kTile) add_numbers<kActivation, kTile>(a.x, numbers, words, t0 + t, c, q, acc + t);
        for (; t < tokens; ++t) add_numbers<kActivation, 1>(a.x, numbers, words, t0 + t, c, q, acc + t);
      }
    }
    if (!grouped) continue;
    const Rows scale = load_scales(w, panel, group_of(w, s, span));
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

}  // namespace avx2
}  // namespace gossamer

// Both ops of one pair of types; `body` takes the arguments `a`.
#define GOSSAMER_DEFINE_PAIR(format, weight, activation, body)                                \
  void format##_matvec_##weight##_##activation##__avx2(const LinearArgs& a) noexcept { body; } \
  void format##_matmul_##weight##_##activation##__avx2(const LinearArgs& a) noexcept { body; }
