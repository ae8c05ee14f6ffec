// AVX2 bodies for 8-bit activations: a word is two registers of 8 rows x 4 inputs. Integer sums are exact, so a lone
// token may be summed in another order than several.
#pragma once

#include "kernels/cpu/dot_avx2-inl.h"
#include "kernels/cpu/tile_avx2-inl.h"

namespace gossamer {
namespace GOSSAMER_NS {

inline __m256i broadcast4(const int8_t* codes) {
  int32_t four;
  __builtin_memcpy(&four, codes, 4);
  return _mm256_set1_epi32(four);
}

// The unsigned side of a dot product of codes as they are expanded: int4 ones are 8 too large already.
template <ValueType kType>
inline __m256i unsigned_side(__m256i codes) {
  return kDotInstruction && kType == ValueType::kInt8 ? _mm256_xor_si256(codes, _mm256_set1_epi8((char)0x80)) : codes;
}
template <ValueType kType>
constexpr int kBias = kType == ValueType::kInt4 ? 8
                      : kDotInstruction         ? 128
                                                : 0;

// Whether products of a span are summed in 16 bits: without the instruction, codes of int4 leave room for that.
template <ValueType kType>
constexpr bool kNarrow = kType == ValueType::kInt4 && !kDotInstruction;

// A word of 8 rows' codes times its inputs, added to 32-bit sums.
template <ValueType kType>
inline __m256i add_word(__m256i sum, __m256i codes, __m256i inputs) {
  if constexpr (kDotInstruction) return add_dots(sum, codes, inputs);
  return add_dots(sum, _mm256_abs_epi8(codes), _mm256_sign_epi8(inputs, codes));
}

// The same, to the 16-bit sums of a span where they are narrow.
template <ValueType kType>
inline __m256i add_products(__m256i sum, __m256i codes, __m256i inputs) {
  __asm__("" : "+x"(sum));  // one addition after the other: gathering the products first would spill them
  // Codes are 0..15 and |x| <= 127: the sum of 8 words' pairs, at most 30480, fits 16 bits.
  if constexpr (kNarrow<kType>) return _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, inputs));
  return add_word<kType>(sum, codes, inputs);
}

template <ValueType kType>
inline __m256i widen_sum(__m256i sum) {
  return kNarrow<kType> ? _mm256_madd_epi16(sum, _mm256_set1_epi16(1)) : sum;
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
      first = add_products<kType>(first, unsigned_side<kType>(first_codes), inputs);
      second = add_products<kType>(second, unsigned_side<kType>(second_codes), inputs);
    });
    sums.rows[0][0] = _mm256_add_epi32(sums.rows[0][0], widen_sum<kType>(first));
    sums.rows[0][1] = _mm256_add_epi32(sums.rows[0][1], widen_sum<kType>(second));
  }
  return sums;
}

// A unit of `kTokens` tokens from x, of codes that are expanded already. Wide sums take no barrier between additions:
// there are registers enough, and the products of several tokens can be under way at once.
template <ValueType kType, int kTokens>
inline Sums<kTokens> dot_stored(const uint8_t* codes, int spans, const int8_t* x, int64_t stride) {
  Sums<kTokens> sums;
  for (int t = 0; t < kTokens; ++t) sums.rows[t][0] = sums.rows[t][1] = _mm256_setzero_si256();
  if constexpr (!kNarrow<kType>) {
#pragma GCC unroll 2
    for (int i = 0; i < spans * kSpanWords; ++i, codes += kWordBits, x += kWordCols) {
      const __m256i first = unsigned_side<kType>(_mm256_load_si256((const __m256i*)codes));
      const __m256i second = unsigned_side<kType>(_mm256_load_si256((const __m256i*)(codes + 32)));
      for (int t = 0; t < kTokens; ++t) {
        const __m256i inputs = broadcast4(x + t * stride);
        sums.rows[t][0] = add_word<kType>(sums.rows[t][0], first, inputs);
        sums.rows[t][1] = add_word<kType>(sums.rows[t][1], second, inputs);
      }
    }
    return sums;
  }
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

// Where the n-th of the two stored inputs of a row lies, by the row's 4 mask bits.
inline __m256i pair_places(int n, int first_word, int last_word) {
  const __m128i places = n == 0 ? _mm_setr_epi8(0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 2, 0, 0, 0)
                                : _mm_setr_epi8(0, 0, 0, 1, 0, 2, 2, 0, 0, 3, 3, 0, 3, 0, 0, 0);
  return _mm256_set_m128i(_mm_add_epi8(places, _mm_set1_epi8((char)(kWordCols * last_word))),
                          _mm_add_epi8(places, _mm_set1_epi8((char)(kWordCols * first_word))));
}

// Signed codes from bytes as they are stored.
template <ValueType kType, bool kHigh>
inline __m256i signed_codes(__m256i bytes) {
  if constexpr (kType == ValueType::kInt8) return bytes;
  const __m256i codes = _mm256_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1,  //
                                         0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1);
  if constexpr (kHigh) bytes = _mm256_srli_epi16(bytes, 4);
  return _mm256_shuffle_epi8(codes, _mm256_and_si256(bytes, _mm256_set1_epi8(0x0f)));
}

// A unit of 2:4 codes for `kTokens` tokens from x. Every row has two codes a word, so they stay as they lie, and the
// inputs that they meet are shuffled to them. Four words share 16 inputs; a register has 8 rows of words i and i + 2,
// or i + 1 and i + 3.
template <ValueType kType, bool kHigh, int kTokens>
inline Sums<kTokens> dot_pairs(Cursor& at, int words, const int8_t* x, int64_t stride) {
  const __m256i low = _mm256_set1_epi8(0x0f);
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i acc[kTokens][2][2];  // rows' halves of 4; kNarrow: 16-bit sums in the first alone
  for (int t = 0; t < kTokens; ++t)
    for (int h = 0; h < 2; ++h) acc[t][h][0] = acc[t][h][1] = _mm256_setzero_si256();
  const uint8_t* v = at.v;
  for (int i = 0; i < words; i += 4, v += 2 * kWordBits, x += 4 * kWordCols) {
    const __m256i mask = _mm256_loadu_si256((const __m256i*)(at.masks + i));
    const __m256i even = _mm256_and_si256(mask, low);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi16(mask, 4), low);
    const __m256i rows[2] = {_mm256_unpacklo_epi8(even, odd), _mm256_unpackhi_epi8(even, odd)};
    __m256i place[2][2];
    for (int j = 0; j < 2; ++j) {
      place[j][0] = _mm256_shuffle_epi8(pair_places(0, j, j + 2), rows[j]);
      place[j][1] = _mm256_shuffle_epi8(pair_places(1, j, j + 2), rows[j]);
    }
    _mm_prefetch((const char*)v + kPrefetch, _MM_HINT_T0);
    _mm_prefetch((const char*)v + kPrefetch + 64, _MM_HINT_T0);
    for (int h = 0; h < 2; ++h) {
      __m256i codes[2], sizes[2], which[2];
      for (int j = 0; j < 2; ++j) {
        which[j] =
            h == 0 ? _mm256_unpacklo_epi8(place[j][0], place[j][1]) : _mm256_unpackhi_epi8(place[j][0], place[j][1]);
        const uint8_t* first = v + 32 * j + 16 * h;
        codes[j] = signed_codes<kType, kHigh>(load_halves(first, first + kWordBits));
      }
      if constexpr (kDotInstruction) {  // the four inputs of a row side by side
        const __m256i first_codes = _mm256_unpacklo_epi16(codes[0], codes[1]);
        const __m256i first_which = _mm256_unpacklo_epi16(which[0], which[1]);
        codes[1] = _mm256_unpackhi_epi16(codes[0], codes[1]);
        which[1] = _mm256_unpackhi_epi16(which[0], which[1]);
        codes[0] = first_codes;
        which[0] = first_which;
      }
      for (int j = 0; j < 2; ++j) sizes[j] = _mm256_abs_epi8(codes[j]);
      for (int t = 0; t < kTokens; ++t) {
        const __m256i inputs = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)(x + t * stride)));
        __m256i(&sum)[2] = acc[t][h];
        if constexpr (kDotInstruction) {
          for (int j = 0; j < 2; ++j)
            sum[j] = add_dots(sum[j], sizes[j], _mm256_sign_epi8(_mm256_shuffle_epi8(inputs, which[j]), codes[j]));
          continue;
        }
        __m256i products[2];
        for (int j = 0; j < 2; ++j)
          products[j] =
              _mm256_maddubs_epi16(sizes[j], _mm256_sign_epi8(_mm256_shuffle_epi8(inputs, which[j]), codes[j]));
        if constexpr (kNarrow<kType>) {
          // |w| <= 8 and |x| <= 127: a unit's 8 sums of two products fit 16 bits.
          sum[0] = _mm256_add_epi16(sum[0], _mm256_add_epi16(products[0], products[1]));
        } else {
          sum[0] = _mm256_add_epi32(sum[0], _mm256_madd_epi16(_mm256_unpacklo_epi16(products[0], products[1]), ones));
          sum[1] = _mm256_add_epi32(sum[1], _mm256_madd_epi16(_mm256_unpackhi_epi16(products[0], products[1]), ones));
        }
      }
    }
  }
  at.v = v;
  at.masks += words;
  Sums<kTokens> sums;
  for (int t = 0; t < kTokens; ++t) {
    for (int h = 0; h < 2; ++h) {
      const __m256i(&sum)[2] = acc[t][h];
      sums.rows[t][h] = kNarrow<kType> ? _mm256_add_epi32(_mm256_cvtepi16_epi32(_mm256_castsi256_si128(sum[0])),
                                                          _mm256_cvtepi16_epi32(_mm256_extracti128_si256(sum[0], 1)))
                                       : _mm256_add_epi32(_mm256_permute2x128_si256(sum[0], sum[1], 0x20),
                                                          _mm256_permute2x128_si256(sum[0], sum[1], 0x31));
    }
  }
  return sums;
}

// Adds the sums of unit u of the tokens from t, less the surplus of codes that were kSurplus too large, to their totals.
template <int kSurplus, int kTokens>
inline void add_unit(const Activations& x, const Sums<kTokens>& sums, const Rows& scale, int u, int t, Rows* totals) {
  for (int i = 0; i < kTokens; ++i) {
    const int64_t at = (t + i) * x.unit_stride + u;
    const __m256i surplus =
        _mm256_set1_epi32(kSurplus == 0 ? 0 : x.unit_surplus[at] / (128 / (kSurplus == 0 ? 1 : kSurplus)));
    const __m256 unit_scale = _mm256_set1_ps(x.unit_scales[at]);
    for (int h = 0; h < 2; ++h) {
      const __m256 sum = _mm256_cvtepi32_ps(_mm256_add_epi32(sums.rows[i][h], surplus));
      totals[i].half[h] = _mm256_fmadd_ps(sum, _mm256_mul_ps(scale.half[h], unit_scale), totals[i].half[h]);
    }
  }
}

// y of panel `panel`, and of the next one too when kPanels == 2 (the two nibbles of int4), for up to kMost tokens. A
// lone token is multiplied as the codes are expanded; more share an expanded unit. Pairs always come kMost tokens at a
// time.
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
      if constexpr (kLayout == Layout::kPairs) {
        const Sums<kMost> sums =
            p == 0 ? dot_pairs<kType, false, kMost>(at[0], x.unit / kWordCols, codes(0), x.stride)
                   : dot_pairs<kType, true, kMost>(at[kPanels - 1], x.unit / kWordCols, codes(0), x.stride);
        add_unit<0>(x, sums, scale, u, t0, totals[p]);
      } else if constexpr (kMost == 1) {
        const Sums<1> sums = p == 0 ? dot_next<kLayout, kType, false>(at[0], spans, codes(0))
                                    : dot_next<kLayout, kType, true>(at[kPanels - 1], spans, codes(0));
        add_unit<kBias<kType>>(x, sums, scale, u, t0, totals[p]);
      } else {
        alignas(32) uint8_t unit[kBlockWords * kWordBits];
        for (int s = 0; s < spans; ++s) {
          if (p == 0)
            store_codes<kLayout, kType, false>(at[0], unit + s * kSpanBytes);
          else
            store_codes<kLayout, kType, true>(at[kPanels - 1], unit + s * kSpanBytes);
        }
        for_tiles(tokens, [&](auto tile, int t) {
          const auto sums = dot_stored<kType, decltype(tile)::value>(unit, spans, codes(t), x.stride);
          add_unit<kBias<kType>>(x, sums, scale, u, t0 + t, totals[p] + t);
        });
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
  if constexpr (kLayout == Layout::kPairs) {
    for_tiles(a.x.tokens, [&](auto tile, int t) {
      a8_panels<kLayout, kType, kPanels, decltype(tile)::value>(a, panel, t, decltype(tile)::value);
    });
    return;
  }
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

}  // namespace GOSSAMER_NS
}  // namespace gossamer
