// csr: a step has one slot of 4 non-zeros for some of the 16 rows. With 8-bit activations 8 slots are multiplied at
// once and their sums moved to their rows; with others a slot at a time is added to its row's 4 lanes.
#pragma once

#include "kernels/cpu/dot_avx2-inl.h"
#include "kernels/cpu/float_avx2-inl.h"

namespace gossamer {
namespace GOSSAMER_NS {

// A panel's slots and steps from the next step on.
struct CsrCursor {
  const uint8_t* columns;
  const uint8_t* v;
  const uint16_t* lanes;
  const uint8_t* counts;
};

inline CsrCursor csr_start(const WeightView& w, int panel) {
  return {w.columns + w.slots[panel] * kCsrSlot, panel_start(w, panel).v, w.lanes + w.steps[panel],
          w.counts + (int64_t)panel * w.csr_blocks};
}

// --- 8-bit activations -----------------------------------------------------------------------------------------------

// table[index] for indices below 64.
inline __m256i look_up(const int8_t* table, __m256i index) {
  __m256i found[4];
  for (int i = 0; i < 4; ++i) {
    const __m256i part = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)(table + 16 * i)));
    found[i] = _mm256_shuffle_epi8(part, index);
  }
  const __m256i bit4 = _mm256_slli_epi16(index, 3);
  const __m256i bit5 = _mm256_slli_epi16(index, 2);
  return _mm256_blendv_epi8(_mm256_blendv_epi8(found[0], found[1], bit4), _mm256_blendv_epi8(found[2], found[3], bit4),
                            bit5);
}

// 32 codes, int4 as code * 16.
template <ValueType kType, bool kHigh>
inline __m256i load_codes(const uint8_t* v) {
  const __m256i bytes = _mm256_loadu_si256((const __m256i*)v);
  if constexpr (kType == ValueType::kInt8) return bytes;
  return _mm256_and_si256(kHigh ? bytes : _mm256_slli_epi16(bytes, 4), _mm256_set1_epi8((char)0xf0));
}

// Adds the slots of 8 rows to sums[t][half] of `kTokens` tokens, whose block of inputs begins at x.
template <ValueType kType, bool kHigh, int kTokens>
inline void add_slots(CsrCursor& at, unsigned rows, const int8_t* x, int64_t stride, __m256i (*sums)[2], int half) {
  const __m256i codes = load_codes<kType, kHigh>(at.v);
  const __m256i sizes = _mm256_abs_epi8(codes);
  const __m256i columns = _mm256_loadu_si256((const __m256i*)at.columns);
  const __m256i places = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)kPlaces.values[rows]));
  const __m256i unused = _mm256_srai_epi32(places, 31);
  for (int t = 0; t < kTokens; ++t) {
    const __m256i inputs = look_up(x + t * stride, columns);
    const __m256i slots = add_dots(_mm256_setzero_si256(), sizes, _mm256_sign_epi8(inputs, codes));
    const __m256i placed = _mm256_andnot_si256(unused, _mm256_permutevar8x32_epi32(slots, places));
    sums[t][half] = _mm256_add_epi32(sums[t][half], placed);
  }
  const int bytes = kCsrSlot * _mm_popcnt_u32(rows);
  at.v += bytes;
  at.columns += bytes;
}

template <ValueType kType, bool kHigh, int kTokens>
inline void csr_a8_panel(const LinearArgs& a, int panel, int t0) {
  const WeightView& w = a.weight;
  CsrCursor at = csr_start(w, panel);
  const int8_t* x = a.x.codes + t0 * a.x.stride;
  const float* unit_scales = a.x.unit_scales + t0 * a.x.unit_stride;
  const bool grouped = w.groups > 1;
  const Rows one = {{_mm256_set1_ps(1.0F), _mm256_set1_ps(1.0F)}};
  const float place = kType == ValueType::kInt4 ? 0.0625F : 1.0F;
  Rows totals[kTokens];
  for (int t = 0; t < kTokens; ++t) totals[t].half[0] = totals[t].half[1] = _mm256_setzero_ps();
  for (int b = 0; b < w.csr_blocks; ++b, x += w.csr_block) {
    if (at.counts[b] == 0) continue;
    __m256i sums[kTokens][2];
    for (int t = 0; t < kTokens; ++t) sums[t][0] = sums[t][1] = _mm256_setzero_si256();
    for (int step = 0; step < at.counts[b]; ++step) {
      const unsigned rows = *at.lanes++;
      if ((rows & 0xffU) != 0) add_slots<kType, kHigh, kTokens>(at, rows & 0xffU, x, a.x.stride, sums, 0);
      if (rows >> 8 != 0) add_slots<kType, kHigh, kTokens>(at, rows >> 8, x, a.x.stride, sums, 1);
    }
    _mm_prefetch((const char*)at.v + kPrefetch, _MM_HINT_T0);
    _mm_prefetch((const char*)at.columns + kPrefetch, _MM_HINT_T0);
    const Rows scale = grouped ? load_scales(w, panel, group_of(w, b, w.csr_block)) : one;
    for (int t = 0; t < kTokens; ++t) {
      const __m256 unit_scale = _mm256_set1_ps(unit_scales[t * a.x.unit_stride + b] * place);
      for (int h = 0; h < 2; ++h) {
        const __m256 factor = _mm256_mul_ps(scale.half[h], unit_scale);
        totals[t].half[h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[t][h]), factor, totals[t].half[h]);
      }
    }
  }
  const Rows scale = grouped ? one : load_scales(w, panel, 0);
  for (int t = 0; t < kTokens; ++t) {
    for (int h = 0; h < 2; ++h) totals[t].half[h] = _mm256_mul_ps(totals[t].half[h], scale.half[h]);
    store_rows(a, panel, t0 + t, totals[t]);
  }
}

// --- f32 and bf16 activations ----------------------------------------------------------------------------------------

// The 4 numbers of a slot, before any scale.
template <ValueType kType, bool kHigh>
inline __m128 load_slot(const uint8_t* v) {
  if constexpr (kType == ValueType::kF32) {
    return _mm_loadu_ps((const float*)v);
  } else if constexpr (kType == ValueType::kBf16) {
    return _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(_mm_loadl_epi64((const __m128i*)v)), 16));
  } else if constexpr (kType == ValueType::kF16) {
    return _mm_cvtph_ps(_mm_loadl_epi64((const __m128i*)v));
  } else if constexpr (kType == ValueType::kInt8) {
    return _mm_cvtepi32_ps(_mm_cvtepi8_epi32(_mm_loadu_si32(v)));
  } else {
    const __m128i top =
        _mm_slli_epi32(_mm_cvtepu8_epi32(_mm_loadu_si32(v)), kHigh ? 24 : 28);  // the nibble in the sign's place
    return _mm_cvtepi32_ps(_mm_srai_epi32(top, 28));
  }
}

// A token's inputs at c + columns.
template <ActivationType kActivation>
inline __m128 gather4(const Activations& x, int token, int64_t c, __m128i columns) {
  const int64_t at = token * x.stride + c;
  if constexpr (kActivation == ActivationType::kF32) return _mm_i32gather_ps(x.f32 + at, columns, 4);
  return _mm_castsi128_ps(_mm_slli_epi32(_mm_i32gather_epi32((const int*)(x.bf16 + at), columns, 2), 16));
}

template <ValueType kType, ActivationType kActivation, bool kHigh, int kTokens>
inline void csr_float_panel(const LinearArgs& a, int panel, int t0) {
  const WeightView& w = a.weight;
  CsrCursor at = csr_start(w, panel);
  const bool grouped = w.groups > 1;
  __m256 acc[kTokens][8];  // as in the tile bodies: two rows' 4 lanes a register
  Rows totals[kTokens];
  for (int t = 0; t < kTokens; ++t) {
    for (int q = 0; q < 8; ++q) acc[t][q] = _mm256_setzero_ps();
    totals[t].half[0] = totals[t].half[1] = _mm256_setzero_ps();
  }
  for (int b = 0; b < w.csr_blocks; ++b) {
    for (int step = 0; step < at.counts[b]; ++step) {
      for (unsigned rows = *at.lanes++; rows != 0; rows &= rows - 1) {
        const unsigned r = _tzcnt_u32(rows);
        const __m128i columns = _mm_cvtepu8_epi32(_mm_loadu_si32(at.columns));
        const __m128 values = load_slot<kType, kHigh>(at.v);
        for (int t = 0; t < kTokens; ++t) {
          float* sums = (float*)acc[t] + 4 * r;
          const __m128 inputs = gather4<kActivation>(a.x, t0 + t, (int64_t)b * w.csr_block, columns);
          _mm_store_ps(sums, _mm_fmadd_ps(values, inputs, _mm_load_ps(sums)));
        }
        at.columns += kCsrSlot;
        at.v += kCsrSlot * kValueBytes<kType>;
      }
    }
    _mm_prefetch((const char*)at.v + kPrefetch, _MM_HINT_T0);
    _mm_prefetch((const char*)at.columns + kPrefetch, _MM_HINT_T0);
    // Blocks never span groups; the sums of a group end where the next block has another one.
    const int group = grouped ? group_of(w, b, w.csr_block) : 0;
    if (!grouped || (b + 1 < w.csr_blocks && group == group_of(w, b + 1, w.csr_block))) continue;
    const Rows scale = load_scales(w, panel, group);
    for (int t = 0; t < kTokens; ++t) {
      const Rows sums = sum_rows(acc[t]);
      for (int h = 0; h < 2; ++h) totals[t].half[h] = _mm256_fmadd_ps(sums.half[h], scale.half[h], totals[t].half[h]);
      for (int q = 0; q < 8; ++q) acc[t][q] = _mm256_setzero_ps();
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    if (!grouped) totals[t] = sum_rows(acc[t]);
    if (w.groups == 1) {
      const Rows scale = load_scales(w, panel, 0);
      for (int h = 0; h < 2; ++h) totals[t].half[h] = _mm256_mul_ps(totals[t].half[h], scale.half[h]);
    }
    store_rows(a, panel, t0 + t, totals[t]);
  }
}

template <ValueType kType, ActivationType kActivation, bool kHigh, int kTokens>
inline void csr_panel(const LinearArgs& a, int panel, int t0) {
  if constexpr (kActivation == ActivationType::kA8)
    csr_a8_panel<kType, kHigh, kTokens>(a, panel, t0);
  else
    csr_float_panel<kType, kActivation, kHigh, kTokens>(a, panel, t0);
}

template <ValueType kType, ActivationType kActivation, bool kHigh>
inline void csr_tokens(const LinearArgs& a, int panel) {
  for_tiles(a.x.tokens,
            [&](auto tile, int t) { csr_panel<kType, kActivation, kHigh, decltype(tile)::value>(a, panel, t); });
}

template <ValueType kType, ActivationType kActivation = ActivationType::kF32>
inline void csr_linear(const LinearArgs& a) {
  for (int s = a.begin; s < a.end; ++s) {
    if constexpr (kType == ValueType::kInt4) {
      csr_tokens<kType, kActivation, false>(a, 2 * s);
      if (2 * s + 1 < a.weight.panels) csr_tokens<kType, kActivation, true>(a, 2 * s + 1);
    } else {
      csr_tokens<kType, kActivation, false>(a, s);
    }
  }
}

}  // namespace GOSSAMER_NS
}  // namespace gossamer
