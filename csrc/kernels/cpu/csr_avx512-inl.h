// AVX-512 bodies for csr: a step has one slot of 4 non-zeros for some of the 16 rows; slots are expanded to their rows'
// places, so that row r's sum stands in lane r (a8) or in part r % 4 of register r / 4 (f32).
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "kernels/cpu/float_avx512-inl.h"

namespace gossamer {
namespace GOSSAMER_NS {

// Where a panel's slots and steps begin.
struct CsrCursor {
  const uint8_t* columns;
  const uint8_t* v;
  const uint16_t* lanes;
  const uint8_t* counts;
};

inline CsrCursor csr_start(const WeightView& w, int panel) {
  return {w.columns + w.slots[panel] * kCsrSlot, stream_start(w, panel), w.lanes + w.steps[panel],
          w.counts + (int64_t)panel * w.csr_blocks};
}

template <ValueType kType, bool kHigh, int kTokens>
inline void csr_float_panel(const LinearArgs& a, int panel, int t0) {
  const WeightView& w = a.weight;
  CsrCursor at = csr_start(w, panel);
  const float* x = a.x.f32 + t0 * a.x.stride;
  __m512 acc[kTokens][4];
  __m512 total[kTokens];
  for (int t = 0; t < kTokens; ++t) {
    total[t] = _mm512_setzero_ps();
    for (int q = 0; q < 4; ++q) acc[t][q] = _mm512_setzero_ps();
  }
  const bool grouped = w.groups > 1;
  for (int b = 0; b < w.csr_blocks; ++b, x += w.csr_block) {
    for (int step = 0; step < at.counts[b]; ++step) {
      const unsigned rows = *at.lanes++;
      for (int q = 0; q < 4; ++q) {
        const unsigned four = (rows >> (4 * q)) & 15U;
        if (four == 0) continue;
        const __mmask16 part = (__mmask16)(_pdep_u32(four, 0x1111U) * 15U);  // a bit a row becomes four
        const int count = kCsrSlot * (int)_mm_popcnt_u32(four);
        const __m512i columns = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)at.columns));
        const __m512i places = _mm512_maskz_expand_epi32(part, columns);
        const __m512 values = _mm512_maskz_expand_ps(part, widen16<kType, kHigh>(at.v));
        at.columns += count;
        at.v += count * kValueBytes<kType>;
        for (int t = 0; t < kTokens; ++t) {
          const __m512 inputs = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), part, places, x + t * a.x.stride, 4);
          acc[t][q] = _mm512_fmadd_ps(values, inputs, acc[t][q]);
        }
      }
    }
    // Blocks never span groups; the sums of a group end where the next block has another one.
    if (grouped && (b + 1 == w.csr_blocks || group_of(w, b, w.csr_block) != group_of(w, b + 1, w.csr_block))) {
      end_group(w, panel, group_of(w, b, w.csr_block), acc, total);
    }
  }
  store_sums(a, panel, t0, acc, total);
}

template <ValueType kType, bool kHigh>
inline void csr_float_tokens(const LinearArgs& a, int panel) {
  int t = 0;
  for (; t + 4 <= a.x.tokens; t += 4) csr_float_panel<kType, kHigh, 4>(a, panel, t);
  for (; t < a.x.tokens; ++t) csr_float_panel<kType, kHigh, 1>(a, panel, t);
}

template <ValueType kType>
inline void csr_float_linear(const LinearArgs& a) {
  for (int s = a.begin; s < a.end; ++s) {
    if constexpr (kType == ValueType::kInt4) {
      csr_float_tokens<kType, false>(a, 2 * s);
      if (2 * s + 1 < a.weight.panels) csr_float_tokens<kType, true>(a, 2 * s + 1);
    } else {
      csr_float_tokens<kType, false>(a, s);
    }
  }
}

#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__)

// Columns pick bytes of the block's 64 activations with one permute. Only stored positions enter a sum, so the surplus
// of the unsigned activations (code + 128) is 128 * sum(weights): a second dot product, once for all tokens.
template <ValueType kType, bool kHigh, int kTokens>
inline void csr_a8_panel(const LinearArgs& a, int panel, int t0) {
  const WeightView& w = a.weight;
  CsrCursor at = csr_start(w, panel);
  const __m512i flip = _mm512_set1_epi8((char)0x80);
  const int8_t* x = a.x.codes + t0 * a.x.stride;
  const float* unit_scales = a.x.unit_scales + t0 * a.x.unit_stride;
  const bool grouped = w.groups > 1;
  const float place = kType == ValueType::kInt4 ? 0.0625F : 1.0F;  // nibbles are used in the high place
  __m512 total[kTokens];
  for (int t = 0; t < kTokens; ++t) total[t] = _mm512_setzero_ps();
  for (int b = 0; b < w.csr_blocks; ++b, x += w.csr_block) {
    if (at.counts[b] == 0) continue;
    __m512i inputs[kTokens];
    __m512i acc[kTokens];
    __m512i surplus = _mm512_setzero_si512();
    for (int t = 0; t < kTokens; ++t) {
      inputs[t] = _mm512_xor_si512(_mm512_loadu_si512(x + t * a.x.stride), flip);
      acc[t] = _mm512_setzero_si512();
    }
    for (int step = 0; step < at.counts[b]; ++step) {
      const __mmask16 rows = (__mmask16)*at.lanes++;
      const int bytes = kCsrSlot * (int)_mm_popcnt_u32(rows);
      const __m512i columns = _mm512_maskz_expand_epi32(rows, _mm512_loadu_si512(at.columns));
      __m512i values = _mm512_loadu_si512(at.v);
      if constexpr (kType == ValueType::kInt4) {
        if constexpr (!kHigh) values = _mm512_slli_epi16(values, 4);
        values = _mm512_and_si512(values, _mm512_set1_epi8((char)0xf0));
      }
      values = _mm512_maskz_expand_epi32(rows, values);
      at.columns += bytes;
      at.v += bytes;
      _mm_prefetch((const char*)at.v + kPrefetch, _MM_HINT_T0);
      _mm_prefetch((const char*)at.columns + kPrefetch, _MM_HINT_T0);
      surplus = _mm512_dpbusd_epi32(surplus, flip, values);
      for (int t = 0; t < kTokens; ++t)
        acc[t] = _mm512_dpbusd_epi32(acc[t], _mm512_permutexvar_epi8(columns, inputs[t]), values);
    }
    const __m512 scale = grouped ? load_scales(w, panel, group_of(w, b, w.csr_block)) : _mm512_set1_ps(1.0F);
    for (int t = 0; t < kTokens; ++t) {
      const __m512 factor = _mm512_mul_ps(scale, _mm512_set1_ps(unit_scales[t * a.x.unit_stride + b] * place));
      total[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(acc[t], surplus)), factor, total[t]);
    }
  }
  const __mmask16 rows = rows_mask(w, panel);
  for (int t = 0; t < kTokens; ++t) {
    if (!grouped) total[t] = _mm512_mul_ps(total[t], load_scales(w, panel, 0));
    _mm512_mask_storeu_ps(a.y + (t0 + t) * a.y_stride + panel * kPanelRows, rows, total[t]);
  }
}

template <ValueType kType, bool kHigh>
inline void csr_a8_tokens(const LinearArgs& a, int panel) {
  int t = 0;
  for (; t + 8 <= a.x.tokens; t += 8) csr_a8_panel<kType, kHigh, 8>(a, panel, t);
  for (; t + 2 <= a.x.tokens; t += 2) csr_a8_panel<kType, kHigh, 2>(a, panel, t);
  if (t < a.x.tokens) csr_a8_panel<kType, kHigh, 1>(a, panel, t);
}

template <ValueType kType>
inline void csr_a8_linear(const LinearArgs& a) {
  for (int s = a.begin; s < a.end; ++s) {
    if constexpr (kType == ValueType::kInt4) {
      csr_a8_tokens<kType, false>(a, 2 * s);
      if (2 * s + 1 < a.weight.panels) csr_a8_tokens<kType, true>(a, 2 * s + 1);
    } else {
      csr_a8_tokens<kType, false>(a, s);
    }
  }
}

#endif

}  // namespace GOSSAMER_NS
}  // namespace gossamer
