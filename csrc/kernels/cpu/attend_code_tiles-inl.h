// Attention over a cache of 8-bit codes by tiles of AMX, which want codes as they lie there: up to 16 queries at once.
// Sums of integers are exact, so that results are those of attend_codes-inl.h, bit for bit.
#pragma once
#include "kernels/cpu/attend_codes-inl.h"
#include "kernels/cpu/attend_tiles-inl.h"

namespace gossamer {
namespace GOSSAMER_NS {
namespace {

constexpr int kTileFours = 16;  // times four codes that a tile has

// Tiles: sums of the upper digits and of the lower ones; both digits of queries or weights; keys or values; and those of
// a key's last elements, fewer than 64.
constexpr int kUpperSum = 0;
constexpr int kLowerSum = 1;
constexpr int kDigitTile = 2;
constexpr int kCodesTile = 4;
constexpr int kRestDigitTile = 5;
constexpr int kRestCodesTile = 7;

inline TileShapes code_shapes(int rows, int rest) {
  TileShapes shapes = {};
  for (int digit = 0; digit < 2; ++digit) {
    shape_tile(shapes, kUpperSum + digit, rows, kTileBytes);
    shape_tile(shapes, kDigitTile + digit, rows, kTileBytes);
    if (rest > 0) shape_tile(shapes, kRestDigitTile + digit, rows, kFour * rest);
  }
  shape_tile(shapes, kCodesTile, kTileFours, kTileBytes);
  if (rest > 0) shape_tile(shapes, kRestCodesTile, rest, kTileBytes);
  return shapes;
}

// Sums of a row tile with up to four times 16 positions, or elements, whose digits are put together when all are stored:
// what a tile stores cannot be read before all of it is in the cache.
struct DigitSums {
  alignas(64) int32_t upper[kPageTokens / kLanes][kTileRows][kLanes];
  alignas(64) int32_t lower[kPageTokens / kLanes][kTileRows][kLanes];

  GOSSAMER_INLINE F16 total(int part, int row, const int32_t* surplus) const {
    const I16 high = load_int((const uint8_t*)upper[part][row]) + splat_int(surplus[0]);
    const I16 low = load_int((const uint8_t*)lower[part][row]) + splat_int(surplus[1]);
    return {{__builtin_convertvector(((high << 8) + low).part[0], F16::Part)}};
  }
};

// Multiplies both digits, `apart` bytes from one another, with the codes of one tile.
template <int kDigits, int kCodes, bool kKeys>
GOSSAMER_INLINE void add_digits(Tiles& tiles, const uint8_t* digits, int64_t stride, int64_t apart,
                                const uint8_t* codes, int64_t code_stride, Ahead& ahead) {
  fetch<kTileFours * kTileBytes>(ahead);
  tiles.template load<kCodes>(codes, code_stride);
  tiles.template load<kDigits>(digits, stride);
  tiles.template multiply<kUpperSum, kDigits, kCodes, !kKeys, kKeys>();
  tiles.template load<kDigits + 1>(digits + apart, stride);
  tiles.template multiply<kLowerSum, kDigits + 1, kCodes, !kKeys, kKeys>();
}

// Scores of `rows` queries with `parts` times 16 positions of a page.
GOSSAMER_INLINE void score_code_tile(Tiles& tiles, const Query* queries, const uint8_t* numbers, int head_dim,
                                     const uint8_t* k, const float* k_scales, int parts, Ahead& coming, float* scores,
                                     int rows) {
  const int groups = fours(head_dim), width = groups * kFour;
  const int64_t stride = query_bytes(head_dim), row = kPageTokens * kFour;
  Ahead ahead = coming;
  DigitSums sums;
  for (int part = 0; part < parts; ++part) {
    const uint8_t* codes = k + part * kCodeBytes;
    tiles.template zero<kUpperSum>();
    tiles.template zero<kLowerSum>();
    int g = 0;
    for (; g + kTileFours <= groups; g += kTileFours)
      add_digits<kDigitTile, kCodesTile, true>(tiles, numbers + g * kFour, stride, width, codes + g * row, row, ahead);
    if (g < groups)
      add_digits<kRestDigitTile, kRestCodesTile, true>(tiles, numbers + g * kFour, stride, width, codes + g * row, row,
                                                       ahead);
    tiles.template store<kUpperSum>(sums.upper[part], kTileBytes);
    tiles.template store<kLowerSum>(sums.lower[part], kTileBytes);
  }
  for (int r = 0; r < rows; ++r)
    for (int part = 0; part < parts; ++part)
      store(scores + (int64_t)r * kScoreStride + part * kLanes,
            sums.total(part, r, queries[r].surplus) * load(k_scales + part * kLanes) * splat(queries[r].scale));
  coming = ahead;
}

// Adds up to four times 16 elements of a page's values, each times its weight, to the outputs of `rows` rows from
// `first` on. weights: of the page, in the memory of its scores; scales: theirs.
GOSSAMER_INLINE void mix_code_tile(Tiles& tiles, const AttentionArgs& a, const float* weights, const float* scales,
                                   const uint8_t* v, int parts, Ahead& coming, int first, int rows, int d) {
  static const int32_t kNone[2] = {0, 0};
  const int group = a.query_heads;
  Ahead ahead = coming;
  DigitSums sums;
  for (int part = 0; part < parts; ++part) {
    tiles.template zero<kUpperSum>();
    tiles.template zero<kLowerSum>();
    add_digits<kDigitTile, kCodesTile, false>(tiles, (const uint8_t*)weights, kScoreStride * (int64_t)sizeof(float),
                                              kPageTokens, v + (int64_t)(d + part * kLanes) * kFour,
                                              kFour * (int64_t)a.padded_dim, ahead);
    tiles.template store<kUpperSum>(sums.upper[part], kTileBytes);
    tiles.template store<kLowerSum>(sums.lower[part], kTileBytes);
  }
  for (int r = 0; r < rows; ++r) {
    const int row = first + r;
    float* out = a.results + row / group * a.result_stride + 2 * group + (int64_t)(row % group) * a.padded_dim + d;
    const F16 scale = splat(scales[r * (int64_t)kScoreStride]);
    for (int part = 0; part < parts; ++part) {
      float* to = out + part * kLanes;
      store(to, load(to) + sums.total(part, r, kNone) * scale);
    }
  }
  coming = ahead;
}

inline void attend_code_tiles(const AttentionArgs& a) noexcept {
  constexpr int kMostParts = kPageTokens / kLanes;
  const uint8_t* const* pages = a.pages + a.begin / kPageTokens;
  const int rows = a.tokens * a.query_heads;
  const int count = a.end - a.begin;
  const int start = seen_by(a, 0).from / kPageTokens * kPageTokens;
  const int64_t v_at = a.offset + code_k_bytes(a.head_dim) + kScaleBytes;
  const Coming coming = {
      pages, count, a.offset, code_k_bytes(a.head_dim) + kScaleBytes, v_at, kPageTokens * kFour, a.padded_dim};
  Query* queries = (Query*)(a.scratch + (int64_t)rows * kScoreStride);
  uint8_t* numbers = (uint8_t*)(queries + rows);
  write_queries(a, queries, numbers);
  const int rest = fours(a.head_dim) % kTileFours;
  for_row_tiles(
      rows, [=](int most) { return code_shapes(most, rest); },
      [&](Tiles& tiles, int begin, int end, int most) {
        for (int at = start; at < count; at += kPageTokens) {
          const uint8_t* page = pages[at / kPageTokens];
          const uint8_t* k = page + a.offset;
          Ahead v_scales = Coming::all(page + v_at + (int64_t)kPageTokens * a.padded_dim, kScaleBytes);
          fetch<kScaleBytes>(v_scales);
          Ahead ahead = begin > 0                  ? kNothing
                        : at + kPageTokens < count ? coming.keys(at + kPageTokens)
                                                   : coming.values(start);
          for (int first = begin; first < end; first += most)
            score_code_tile(tiles, queries + first, numbers + first * query_bytes(a.head_dim), a.head_dim, k,
                            (const float*)(k + code_k_bytes(a.head_dim)), coming.parts(at), ahead,
                            a.scratch + (int64_t)first * kScoreStride + at, most);
        }
      });
  weigh_all_codes(a, start, count);
  for_row_tiles(
      rows, [](int most) { return code_shapes(most, 0); },
      [&](Tiles& tiles, int begin, int end, int most) {
        for (int at = start; at < count; at += kPageTokens) {
          Ahead ahead = begin > 0                  ? kNothing
                        : at + kPageTokens < count ? coming.values(at + kPageTokens)
                                                   : coming.next(a.next);
          for (int first = begin; first < end; first += most) {
            const float* mine = a.scratch + (int64_t)first * kScoreStride;
            const int parts = a.padded_dim / kLanes;
            for (int part = 0; part < parts; part += kMostParts)
              mix_code_tile(tiles, a, mine + at, mine + kAttentionSpan + at / kPageTokens,
                            pages[at / kPageTokens] + v_at, parts - part < kMostParts ? parts - part : kMostParts,
                            ahead, first, most, part * kLanes);
          }
        }
      });
}

constexpr KvKernels code_tile_kernels() {
  return {1, kFour, sizeof(float), store_k_codes, store_v_codes, attend_code_tiles};
}

}  // namespace
}  // namespace GOSSAMER_NS
}  // namespace gossamer
