// What the AVX-512 bodies over the 16 x 4 tile share, for the formats whose values lie in order of word and bit: dense,
// bitmap, nm. GOSSAMER_NS is the object's namespace. Sums run along the inputs in one fixed order for every number of
// tokens.
#pragma once
#ifndef GOSSAMER_NS
#error "define GOSSAMER_NS first"
#endif
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

template <Layout kLayout>
struct LayoutOf {
  static constexpr Layout value = kLayout;
};

// Calls use(LayoutOf<...>) with how the values of a weight of the format lie.
template <Format kFormat, class Use>
inline void with_layout(const LinearArgs& a, const Use& use) {
  if constexpr (kFormat == Format::kDense)
    use(LayoutOf<Layout::kDense>());
  else if (kFormat == Format::kNm && a.weight.m == 4)
    use(LayoutOf<Layout::kFixed>());
  else
    use(LayoutOf<Layout::kMasked>());
}

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

inline int min_of(int a, int b) { return a < b ? a : b; }

template <int kValue>
struct Count {
  static constexpr int value = kValue;
};

// Calls use(Count<size>), 1 <= size <= kMost.
template <int kMost, class Use>
inline void for_size(int size, const Use& use) {
  if constexpr (kMost > 1) {
    if (size < kMost) return for_size<kMost - 1>(size, use);
  }
  use(Count<kMost>());
}

// Cuts `tokens` tokens into the fewest tiles of at most kMost, as equal as can be, and hands each to
// use(Count<tile>, first token).
template <int kMost, class Use>
inline void for_tiles(int tokens, const Use& use) {
  const int tiles = (tokens + kMost - 1) / kMost;
  for (int i = 0, t = 0; i < tiles; ++i) {
    const int size = (tokens - t + tiles - i - 1) / (tiles - i);
    for_size<kMost>(size, [&](auto count) { use(count, t); });
    t += size;
  }
}

// Scale group of a unit of `unit_cols` inputs.
inline int group_of(const WeightView& w, int unit, int unit_cols) {
  return w.group == 0 ? 0 : (unit * unit_cols) >> __builtin_ctz((unsigned)w.group);
}

}  // namespace GOSSAMER_NS
}  // namespace gossamer
