// What the AVX2 bodies over the 16 x 4 tile share, for the formats whose values lie in order of word and bit: dense,
// bitmap, nm; and how 8-bit codes are expanded. Sums run along the inputs in one fixed order for every number of
// tokens.
#ifndef GOSSAMER_NS
#error "define GOSSAMER_NS first"
#endif
#pragma once

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
  kPairs,   // 32 a word, 2:4; multiplied without being expanded
};

template <int kValue>
struct Count {
  static constexpr int value = kValue;
};

// Cuts tokens into tiles of 3, the most whose sums stay in registers, and what is left, and hands each to
// use(Count<tile>, first token).
template <class Use>
inline void for_tiles(int tokens, const Use& use) {
  for (int t = 0; t < tokens;) {
    const int left = tokens - t;
    if (left >= 3) {
      use(Count<3>(), t);
      t += 3;
    } else if (left == 2) {
      use(Count<2>(), t);
      t += 2;
    } else {
      use(Count<1>(), t);
      t += 1;
    }
  }
}

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
inline int group_of(const WeightView& w, int unit, int unit_cols) {
  return w.group == 0 ? 0 : (unit * unit_cols) >> __builtin_ctz((unsigned)w.group);
}

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

// --- expanding codes -------------------------------------------------------------------------------------------------

// AVX2 has no expand instruction: codes are shuffled to their places, a span at a time.
constexpr int kSpanWords = 8;
constexpr int kSpanCols = kSpanWords * kWordCols;
constexpr int kSpanBytes = kSpanWords * kWordBits;

// Shuffle controls come from the mask alone, for four words at a time. A 128-bit half of an expanded word is 4 rows,
// whose values lie in 16 consecutive bytes; row r of them begins where the rows before it end. A control byte per row:
// bit 7: input 3 is not stored; bits 6..4: inputs 2..0 are stored; bits 3..0: where the row's values begin, from 0
// to 12.
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
    const __m256i even =
        _mm256_or_si256(_mm256_and_si256(_mm256_slli_epi16(bits, 4), high), _mm256_and_si256(begins, low));
    const __m256i odd =
        _mm256_or_si256(_mm256_and_si256(bits, high), _mm256_and_si256(_mm256_srli_epi16(begins, 4), low));
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
  const __m256i before =
      _mm256_setr_epi32(0x00808080, 0x01808000, 0x01800080, 0x02800100, 0x01008080, 0x02018000, 0x02010080, 0x03020100);
  const __m256i which = _mm256_srli_epi32(rows, 4);
  return _mm256_add_epi8(_mm256_and_si256(rows, _mm256_set1_epi32((int)0xff7f7f7f)),
                         _mm256_permutevar8x32_epi32(before, which));
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
    const __m256i first_rows = _mm256_setr_epi8(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5,
                                                6, 6, 6, 6, 7, 7, 7, 7);
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
      const __m256i first =
          _mm256_shuffle_epi8(load_halves(v, v + begin[1]), shuffle_control(_mm256_shuffle_epi8(row, first_rows)));
      const __m256i second = _mm256_shuffle_epi8(load_halves(v + begin[2], v + begin[3]),
                                                 shuffle_control(_mm256_shuffle_epi8(row, last_rows)));
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

}  // namespace GOSSAMER_NS
}  // namespace gossamer
