// AMX bodies for 8-bit activations of several tokens. A word of weights, 4 inputs of 16 rows, is a row of a tile, and
// the codes of a token's unit are one, too: a unit's words are expanded once, and one instruction multiplies them with
// up to 16 tokens. Sums are those of the VNNI kernels, and what follows them is in their order, so results are theirs
// bit for bit.
#pragma once
#include "kernels/cpu/a8_avx512-inl.h"
#include "kernels/cpu/tiles-inl.h"
#include "kernels/kernel_table.h"

namespace gossamer {
namespace GOSSAMER_NS {

// Fewer tokens are left to the VNNI kernels, which expand weights into registers; a tile wants them in memory.
constexpr int kFewestTokens = 7;

// Tokens that share a unit's expanded words. Their totals stay in the L1 cache.
constexpr int kAmxTokens = 64;

// Tiles: of each of up to two panels' codes and sums, and of the inputs; the last three are of the tokens that do not
// fill a tile of their own.
constexpr int kCodeTile = 0;
constexpr int kInputTile = 2;
constexpr int kSumTile = 3;
constexpr int kRestInputTile = 5;
constexpr int kRestSumTile = 6;

inline TileShapes tile_shapes(const Activations& x) {
  TileShapes shapes = {};
  const int full = min_of(x.tokens, kTileRows);
  const int rest = x.tokens % kTileRows;
  for (int p = 0; p < 2; ++p) {
    shape_tile(shapes, kCodeTile + p, x.unit / kWordCols, kWordBits);
    shape_tile(shapes, kSumTile + p, full, kTileBytes);
    if (rest > 0) shape_tile(shapes, kRestSumTile + p, rest, kTileBytes);
  }
  shape_tile(shapes, kInputTile, full, x.unit);
  if (rest > 0) shape_tile(shapes, kRestInputTile, rest, x.unit);
  return shapes;
}

// Sums of one panel or two, whose codes stand in their tiles, on their way into the totals. A tile is scaled while the
// next one is multiplied: what it stores cannot be read before all of it has reached the cache.
template <int kPanels, bool kSigned>
class TileSums {
 public:
  TileSums(Tiles& tiles, const LinearArgs& a, const int (&surplus_shift)[kPanels],
           float (*totals)[kAmxTokens][kPanelRows])
      : tiles_(tiles), x_(a.x), totals_(totals) {
    for (int p = 0; p < kPanels; ++p) surplus_shift_[p] = surplus_shift[p];
  }
  TileSums(const TileSums&) = delete;
  TileSums& operator=(const TileSums&) = delete;

  // Adds the unit u of tokens from t0 on, up to kAmxTokens. scales: of the unit's codes.
  void add(int u, int t0, int tokens, const __m512 (&scales)[kPanels]) {
    const int full = min_of(x_.tokens, kTileRows);
    for (int t = 0; t < tokens; t += full) {
      const int some = min_of(full, tokens - t);
      if (some == full)
        multiply<kInputTile, kSumTile>(u, t0 + t);
      else
        multiply<kRestInputTile, kRestSumTile>(u, t0 + t);
      finish();
      const int64_t at = (t0 + t) * x_.unit_stride + u;
      waiting_.tokens = some;
      waiting_.unit_scales = x_.unit_scales + at;
      waiting_.surplus = x_.unit_surplus + at;
      for (int p = 0; p < kPanels; ++p) {
        waiting_.scales[p] = scales[p];
        waiting_.sums[p] = sums_[turn_][p][0];
        waiting_.totals[p] = totals_[p][t];
      }
      turn_ ^= 1;
    }
  }

  // Has all that was added in the totals.
  void finish() {
    const Waiting now = waiting_;
    const int64_t stride = x_.unit_stride;
    if (now.tokens == kTileRows) {
#pragma GCC unroll 16
      for (int i = 0; i < kTileRows; ++i) scale(now, i, stride);
    } else {
      for (int i = 0; i < now.tokens; ++i) scale(now, i, stride);
    }
    waiting_.tokens = 0;
  }

 private:
  struct Waiting {
    int tokens = 0;
    const float* unit_scales;
    const int32_t* surplus;
    __m512 scales[kPanels];
    const int32_t* sums[kPanels];
    float* totals[kPanels];
  };

  __attribute__((always_inline)) inline void scale(const Waiting& now, int i, int64_t stride) const {
    for (int p = 0; p < kPanels; ++p) {
      __m512i sum = _mm512_load_si512(now.sums[p] + i * kPanelRows);
      if constexpr (!kSigned)
        sum = _mm512_add_epi32(sum, _mm512_set1_epi32(now.surplus[i * stride] >> surplus_shift_[p]));
      const __m512 factor = _mm512_mul_ps(now.scales[p], _mm512_set1_ps(now.unit_scales[i * stride]));
      float* total = now.totals[p] + i * kPanelRows;
      _mm512_store_ps(total, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), factor, _mm512_load_ps(total)));
    }
  }

  template <int kInputs, int kSums>
  void multiply(int u, int t) {
    tiles_.template load<kInputs>(x_.codes + t * x_.stride + (int64_t)u * x_.unit, x_.stride);
    tiles_.template zero<kSums>();
    tiles_.template multiply<kSums, kInputs, kCodeTile, kSigned>();
    if constexpr (kPanels == 2) {
      tiles_.template zero<kSums + 1>();
      tiles_.template multiply<kSums + 1, kInputs, kCodeTile + 1, kSigned>();
    }
    tiles_.template store<kSums>(sums_[turn_][0], kTileBytes);
    if constexpr (kPanels == 2) tiles_.template store<kSums + 1>(sums_[turn_][1], kTileBytes);
  }

  Tiles& tiles_;
  const Activations x_;
  int surplus_shift_[kPanels];
  float (*totals_)[kAmxTokens][kPanelRows];
  alignas(64) int32_t sums_[2][kPanels][kTileRows][kPanelRows];
  Waiting waiting_;
  int turn_ = 0;
};

inline void clear_totals(int tokens, float (*totals)[kPanelRows]) {
  for (int t = 0; t < tokens; ++t) _mm512_store_ps(totals[t], _mm512_setzero_ps());
}

inline void store_totals(const LinearArgs& a, int panel, int t0, int tokens, const float (*totals)[kPanelRows]) {
  const __mmask16 rows = rows_mask(a.weight, panel);
  const bool grouped = a.weight.groups > 1;
  const __m512 scale = grouped ? _mm512_setzero_ps() : load_scales(a.weight, panel, 0);
  for (int t = 0; t < tokens; ++t) {
    __m512 total = _mm512_load_ps(totals[t]);
    if (!grouped) total = _mm512_mul_ps(total, scale);
    _mm512_mask_storeu_ps(a.y + (t0 + t) * a.y_stride + panel * kPanelRows, rows, total);
  }
}

// The next words of a panel in the form of a tile, at `out` or where they lie: int8 codes are signed, int4 ones as the
// VNNI kernels have them.
template <Layout kLayout, ValueType kType, bool kHigh>
inline const uint8_t* tile_words(const uint64_t*& masks, const uint8_t*& v, int fixed_step, int words, uint8_t* out) {
  if constexpr (kType == ValueType::kInt8 && kLayout == Layout::kDense) {
    const uint8_t* here = v;
    v += words * kWordBits;
    for (int i = 0; i < words; ++i) _mm_prefetch((const char*)here + kPrefetch + i * kWordBits, _MM_HINT_T0);
    return here;
  } else {
#pragma GCC unroll 4
    for (int i = 0; i < words; ++i) {
      __m512i codes;
      if constexpr (kType == ValueType::kInt8) {
        const uint64_t mask = *masks++;
        codes = _mm512_maskz_expand_epi8(mask, _mm512_loadu_si512(v));
        v += kLayout == Layout::kFixed ? fixed_step : (int)_mm_popcnt_u64(mask);
      } else {
        codes = next_codes<kLayout, kType, kHigh>(masks, v, fixed_step);
      }
      if (kLayout == Layout::kDense || i % 2 == 0) _mm_prefetch((const char*)v + kPrefetch, _MM_HINT_T0);
      _mm512_store_si512(out + i * kWordBits, codes);
    }
    return out;
  }
}

// y of panel `panel`, and of the next one too when kPanels == 2 (the two nibbles of int4).
template <Layout kLayout, ValueType kType, int kPanels>
__attribute__((noinline)) void amx_panels(Tiles& tiles, const LinearArgs& a, int panel) {
  const WeightView& w = a.weight;
  const int unit = a.x.unit;
  const int units = w.blocks * (kBlockCols / unit);
  const int words = unit / kWordCols;
  const int fixed_step = kPanelRows * w.n;
  const bool grouped = w.groups > 1;
  constexpr bool kSigned = kType == ValueType::kInt8;
  alignas(64) float totals[kPanels][kAmxTokens][kPanelRows];
  // Units that are expanded ahead, as a tile cannot load what has just been stored: none where a second panel is expanded
  // in the meantime.
  constexpr int kLead = kPanels == 1 ? 1 : 0;
  alignas(64) uint8_t expanded[kLead + 1][kPanels][kBlockWords * kWordBits];
  int surplus_shift[kPanels];
  for (int p = 0; p < kPanels; ++p) surplus_shift[p] = 7 - (p == 0 ? kBiasBits<kType, false> : kBiasBits<kType, true>);
  TileSums<kPanels, kSigned> sums(tiles, a, surplus_shift, totals);
  for (int t0 = 0; t0 < a.x.tokens; t0 += kAmxTokens) {
    const int tokens = min_of(kAmxTokens, a.x.tokens - t0);
    const uint8_t* v[kPanels];
    const uint64_t* masks[kPanels];
    for (int p = 0; p < kPanels; ++p) {
      v[p] = stream_start(w, panel + p);
      masks[p] = kLayout == Layout::kDense ? nullptr : mask_start(w, panel + p);
      clear_totals(tokens, totals[p]);
    }
    const uint8_t* codes[kLead + 1][kPanels];
    for (int next = 0; next < units + kLead; ++next) {
      if (next < units) {
        const int turn = next % (kLead + 1);
        if constexpr (kLayout != Layout::kDense) prefetch_masks(w, masks, next * words, words);
        codes[turn][0] = tile_words<kLayout, kType, false>(masks[0], v[0], fixed_step, words, expanded[turn][0]);
        if constexpr (kPanels == 2)
          codes[turn][1] = tile_words<kLayout, kType, true>(masks[1], v[1], fixed_step, words, expanded[turn][1]);
      }
      if (next < kLead) continue;
      const int u = next - kLead;
      __m512 scales[kPanels];
      for (int p = 0; p < kPanels; ++p) {
        const __m512 place = _mm512_set1_ps(p == 1 ? 0.0625F : 1.0F);
        scales[p] = grouped ? _mm512_mul_ps(load_scales(w, panel + p, group_of(w, u, unit), kPanels), place) : place;
      }
      tiles.template load<kCodeTile>(codes[u % (kLead + 1)][0], kWordBits);
      if constexpr (kPanels == 2) tiles.template load<kCodeTile + 1>(codes[u % (kLead + 1)][1], kWordBits);
      sums.add(u, t0, tokens, scales);
    }
    sums.finish();
    for (int p = 0; p < kPanels; ++p) store_totals(a, panel + p, t0, tokens, totals[p]);
  }
}

template <Layout kLayout, ValueType kType>
inline void amx_linear(Tiles& tiles, const LinearArgs& a) {
  for (int s = a.begin; s < a.end; ++s) {
    if constexpr (kType != ValueType::kInt4)
      amx_panels<kLayout, kType, 1>(tiles, a, s);
    else if (2 * s + 1 == a.weight.panels)
      amx_panels<kLayout, kType, 1>(tiles, a, 2 * s);
    else
      amx_panels<kLayout, kType, 2>(tiles, a, 2 * s);
  }
}

// With the VNNI kernel of the same weights for fewer tokens than pay.
template <Format kFormat, ValueType kType>
inline void amx_run(const LinearArgs& a, LinearKernel vnni) {
  if (a.x.tokens < kFewestTokens) return vnni(a);
  const TileShapes shapes = tile_shapes(a.x);
  Tiles tiles(shapes);
  with_layout<kFormat>(a, [&](auto layout) { amx_linear<decltype(layout)::value, kType>(tiles, a); });
}

}  // namespace GOSSAMER_NS
}  // namespace gossamer

// Defines one kernel of the table; GOSSAMER_DECLARE_KERNEL has declared the VNNI one.
#define GOSSAMER_DEFINE_AMX_KERNEL(format_, weight_, activation_, isa_)                     \
  void format_##_linear_##weight_##_##activation_##__##isa_(const LinearArgs& a) noexcept { \
    amx_run<table::format::format_, table::weight::weight_>(                                \
        a, avx512_vbmi2::format_##_linear_##weight_##_##activation_##__avx512_vbmi2);       \
  }
