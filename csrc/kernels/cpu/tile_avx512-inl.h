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

// Bytes ahead that are fetched, of values, of values that two panels share, and of the thinner streams: far enough for
// memory, near enough to stay in L1.
constexpr int kPrefetch = 4096;
constexpr int kPrefetchShared = 2048;
constexpr int kPrefetchThin = 1024;

// How far ahead of byte `at` of a panel's part of a thin stream its reader will be in kPrefetchThin bytes' time, where
// `panels` panels are gone over at once: behind the last byte of the part it goes on `panels` parts further.
inline int64_t thin_ahead(int64_t at, int64_t part, int panels) {
  return kPrefetchThin + (at + kPrefetchThin >= part ? (panels - 1) * part : 0);
}

inline const uint8_t* stream_start(const WeightView& w, int panel) {
  const int stream = w.type == ValueType::kInt4 ? panel / 2 : panel;
  return w.values + (w.offsets != nullptr ? w.offsets[stream] : (uint64_t)stream * (uint64_t)w.stride);
}

inline const uint64_t* mask_start(const WeightView& w, int panel) {
  return w.masks + (int64_t)panel * w.blocks * kBlockWords;
}

// Fetches what follows `words` words at each of `masks`, word `at` of as many panels that are gone over at once.
template <int kPanels>
inline void prefetch_masks(const WeightView& w, const uint64_t* const (&masks)[kPanels], int at, int words) {
  constexpr int kBytes = (int)sizeof(uint64_t);
  const int64_t ahead = thin_ahead((int64_t)at * kBytes, (int64_t)w.blocks * kBlockWords * kBytes, kPanels);
  for (int p = 0; p < kPanels; ++p)
    for (int line = 0; line < words; line += 64 / kBytes)
      _mm_prefetch((const char*)(masks[p] + line) + ahead, _MM_HINT_T0);
}

inline __mmask16 rows_mask(const WeightView& w, int panel) {
  const int rows = w.rows - panel * kPanelRows;
  return rows >= kPanelRows ? (__mmask16)0xffff : (__mmask16)((1U << rows) - 1);
}

// Scales of a panel's group; `panels` are gone over at once.
inline __m512 load_scales(const WeightView& w, int panel, int group, int panels = 1) {
  constexpr int kBytes = kPanelRows * (int)sizeof *w.scales;
  const uint16_t* scales = w.scales + ((int64_t)panel * w.groups + group) * kPanelRows;
  _mm_prefetch((const char*)scales + thin_ahead((int64_t)group * kBytes, (int64_t)w.groups * kBytes, panels),
               _MM_HINT_T0);
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
