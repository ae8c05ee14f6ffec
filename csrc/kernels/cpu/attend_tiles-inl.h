// The attention of a cache of bf16 by tiles of AMX: up to 16 queries at once, and one token's in the same way. What the
// cache holds is what tiles want, since two elements of a key, and two positions of a value, lie together there.
//
// A sum is taken 32 products at a time (elements of a key; positions of values, from one that is a multiple of 32): the
// even ones in order from zero, the odd ones in order from zero, by fused multiply-adds, and both together are added to
// it. Subnormal numbers would be flushed, but do not come up: see KvBf16.
#pragma once
#include "kernels/cpu/attend-inl.h"
#include "kernels/cpu/tiles-inl.h"

namespace gossamer {
namespace GOSSAMER_NS {
namespace {

constexpr int kDepth = 32;          // values of bf16 that a row of a tile has
constexpr int kPairs = kDepth / 2;  // that lie together
constexpr int kMostSums = 4;        // tiles of sums, 0 to 3

// The other tiles: of queries or weights, and of keys or values; and those of the last elements of keys, fewer than 32.
constexpr int kLeftTile = 4;
constexpr int kRightTile = 5;
constexpr int kRestLeftTile = 6;
constexpr int kRestRightTile = 7;

inline TileShapes attention_shapes(int rows, int rest) {
  TileShapes shapes = {};
  for (int sum = 0; sum < kMostSums; ++sum) shape_tile(shapes, sum, rows, kTileBytes);
  shape_tile(shapes, kLeftTile, rows, kTileBytes);
  shape_tile(shapes, kRightTile, kPairs, kTileBytes);
  if (rest > 0) {
    shape_tile(shapes, kRestLeftTile, rows, 4 * rest);
    shape_tile(shapes, kRestRightTile, rest, kTileBytes);
  }
  return shapes;
}

// Calls `body` with 0, 1, up to count - 1, as constants.
template <class Body>
GOSSAMER_INLINE void for_sums(int count, const Body& body) {
  body(Constant<0>{});
  if (count > 1) body(Constant<1>{});
  if (count > 2) body(Constant<2>{});
  if (count > 3) body(Constant<3>{});
}

// Calls `body(tiles, begin, end, most)` for the rows that fill tiles of 16, and for those that do not, with tiles for as
// many as `most` of them, which have the shapes that `shapes(most)` says.
template <class Shapes, class Body>
void for_row_tiles(int rows, const Shapes& shapes, const Body& body) {
  const int full = rows / kTileRows * kTileRows;
  if (full > 0) {
    Tiles tiles(shapes(kTileRows));
    body(tiles, 0, full, kTileRows);
  }
  if (rows > full) {
    Tiles tiles(shapes(rows - full));
    body(tiles, full, rows, rows - full);
  }
}

// Scores of rows [first, first + rows) with `parts` times 16 positions of a page.
GOSSAMER_INLINE void score_tile(Tiles& tiles, const uint32_t* q, int lanes, const uint16_t* k, int parts, float scale,
                                Ahead& coming, float* scores, int rows) {
  constexpr int64_t kStride = kPageTokens * 4;
  Ahead ahead = coming;
  for_sums(parts, [&](auto j) { tiles.template zero<decltype(j)::value>(); });
  const auto some = [&](auto left, auto right, int at) {
    tiles.template load<decltype(left)::value>(q + at, lanes * 4);
    for_sums(parts, [&](auto j) {
      constexpr int kSum = decltype(j)::value;
      fetch<kPairs * kTileBytes>(ahead);
      tiles.template load<decltype(right)::value>(k + (int64_t)at * 2 * kPageTokens + 2 * kLanes * kSum, kStride);
      tiles.template multiply_bf16<kSum, decltype(left)::value, decltype(right)::value>();
    });
  };
  int at = 0;
  for (; at + kPairs <= lanes; at += kPairs) some(Constant<kLeftTile>{}, Constant<kRightTile>{}, at);
  if (at < lanes) some(Constant<kRestLeftTile>{}, Constant<kRestRightTile>{}, at);
  for_sums(parts, [&](auto j) {
    constexpr int kSum = decltype(j)::value;
    tiles.template store<kSum>(scores + kSum * kLanes, kScoreStride * (int64_t)sizeof(float));
  });
  for (int r = 0; r < rows; ++r)
    for (int j = 0; j < parts; ++j) {
      float* score = scores + (int64_t)r * kScoreStride + j * kLanes;
      store(score, load(score) * splat(scale));
    }
  coming = ahead;
}

// Whether a pair of bf16 among some rows of 16 is not finite.
inline bool has_infinite(const uint16_t* values, int64_t count) {
  const I16 upper = splat_int(0x7f800000), lower = splat_int(0x7f80);
  I16 found = {};
  for (int64_t i = 0; i < count; i += 2 * kLanes) {
    const I16 pairs = load_int(values + i);
    found = found | ~less(pairs & upper, upper) | ~less(pairs & lower, lower);
  }
  alignas(64) int32_t lanes[kLanes];
  memcpy(lanes, &found, sizeof lanes);
  int any = 0;
  for (int i = 0; i < kLanes; ++i) any |= lanes[i];
  return any != 0;
}

// The outputs of rows [first, first + rows) of `a`, whose weights stand where their scores were.
class Mixing {
 public:
  Mixing(Tiles& tiles, const AttentionArgs& a, const uint8_t* const* pages, int64_t v_at, int first, int rows)
      : tiles_(tiles), a_(a), pages_(pages), v_at_(v_at), first_(first), rows_(rows) {
    const Seen early = seen_of(0), late = seen_of(rows - 1);
    from_ = early.from / kDepth * kDepth;
    to_ = late.to;
    shared_ = {late.from, early.to};
    for (int r = 0; r < rows; ++r) {  // weights are zero in the 32 of a row's own first and last ones, scores elsewhere
      const Seen seen = seen_of(r);
      const int begin = seen.from / kDepth * kDepth, end = padded(seen.to);
      memset(weights(r) + from_, 0, sizeof(uint16_t) * (size_t)(begin - from_));
      if (end < padded(to_)) memset(weights(r) + end, 0, sizeof(uint16_t) * (size_t)(padded(to_) - end));
    }
    for (int at = from_; at < to_; at += kDepth)
      if (partly(at) && has_infinite(values(at), kDepth * (int64_t)a.padded_dim)) guarded_ |= 1U << at / kDepth;
  }

  // The sums of up to kMostSums times 16 elements from `d` on. `coming`: what is fetched while a page is read.
  template <class ComingOf>
  void mix(int d, int parts, const ComingOf& coming) {
    alignas(64) float sums[kTileRows][kMostSums * kLanes];
    const int64_t stride = 4 * (int64_t)a_.padded_dim;
    Ahead ahead = kNothing;
    for_sums(parts, [&](auto j) { tiles_.template zero<decltype(j)::value>(); });
    for (int at = from_; at < to_; at += kDepth) {
      if (at % kPageTokens == 0 || at == from_) ahead = coming(at / kPageTokens * kPageTokens);
      tiles_.template load<kLeftTile>(weights(0) + at, kScoreStride * (int64_t)sizeof(float));
      for_sums(parts, [&](auto j) {
        constexpr int kSum = decltype(j)::value;
        const uint16_t* from = values(at) + 2 * (d + kSum * kLanes);
        fetch<kPairs * kTileBytes>(ahead);
        if (guarded(at)) {
          alignas(64) uint16_t finite[kPairs][2 * kLanes];
          for (int pair = 0; pair < kPairs; ++pair)
            for (int i = 0; i < 2 * kLanes; ++i) {
              const uint16_t value = from[pair * 2 * (int64_t)a_.padded_dim + i];
              finite[pair][i] = (value & 0x7f80) == 0x7f80 ? 0 : value;
            }
          tiles_.template load<kRightTile>(finite, kTileBytes);
        } else {
          tiles_.template load<kRightTile>(from, stride);
        }
        tiles_.template multiply_bf16<kSum, kLeftTile, kRightTile>();
      });
    }
    for_sums(parts, [&](auto j) {
      constexpr int kSum = decltype(j)::value;
      tiles_.template store<kSum>(sums[0] + kSum * kLanes, (int64_t)sizeof sums[0]);
    });
    for (int r = 0; r < rows_; ++r)
      for (int j = 0; j < parts; ++j) store(out(r) + d + j * kLanes, load(sums[r] + j * kLanes));
    for (int at = from_; at < to_; at += kDepth)
      if (guarded(at)) add_infinite(at, d, parts * kLanes);
  }

 private:
  static int padded(int position) { return (position + kDepth - 1) / kDepth * kDepth; }
  Seen seen_of(int r) const { return seen_by(a_, (first_ + r) / a_.query_heads); }
  uint16_t* weights(int r) const { return (uint16_t*)(a_.scratch + (int64_t)(first_ + r) * kScoreStride); }
  float* out(int r) const {
    const int row = first_ + r, group = a_.query_heads;
    return a_.results + row / group * a_.result_stride + 2 * group + (int64_t)(row % group) * a_.padded_dim;
  }
  const uint16_t* values(int at) const {
    return (const uint16_t*)(pages_[at / kPageTokens] + v_at_) + (int64_t)(at % kPageTokens) * a_.padded_dim;
  }
  // Whether one of the rows does not see all of 32 positions: what a token does not see must not reach it.
  bool partly(int at) const { return at < shared_.from || at + kDepth > shared_.to; }
  // Whether there is something among these, then, that must not.
  bool guarded(int at) const { return (guarded_ >> at / kDepth & 1U) != 0; }

  // What was left out of the sums, for those who see it.
  void add_infinite(int at, int d, int count) const {
    for (int r = 0; r < rows_; ++r) {
      const Seen seen = seen_of(r);
      for (int t = at < seen.from ? seen.from : at; t < at + kDepth && t < seen.to; ++t)
        for (int i = d; i < d + count; ++i) {
          const uint16_t value = values(at)[(int64_t)((t - at) / 2) * 2 * a_.padded_dim + 2 * i + (t - at) % 2];
          if ((value & 0x7f80) == 0x7f80) out(r)[i] += widened(weights(r)[t]) * widened(value);
        }
    }
  }

  Tiles& tiles_;
  const AttentionArgs& a_;
  const uint8_t* const* pages_;
  int64_t v_at_;
  int first_, rows_, from_, to_;
  Seen shared_;
  uint32_t guarded_ = 0;  // a bit for each 32 positions of the span
  static_assert(kAttentionSpan / kDepth <= 32);
};

inline void attend_tiles(const AttentionArgs& a) noexcept {
  const uint8_t* const* pages = a.pages + a.begin / kPageTokens;
  const int rows = a.tokens * a.query_heads;
  const int count = a.end - a.begin;
  const int start = seen_by(a, 0).from / kPageTokens * kPageTokens;
  const int lanes = k_rows<KvBf16>(a.head_dim) / 2;
  const int64_t v_at = a.offset + (int64_t)lanes * 4 * kPageTokens;
  const uint32_t* q = operands<KvBf16>(a, a.scratch + (int64_t)rows * kScoreStride);
  const Coming coming = {pages, count, a.offset, v_at - a.offset, v_at, 4 * kPageTokens, 2 * (int64_t)a.padded_dim};
  for_row_tiles(
      rows, [=](int most) { return attention_shapes(most, lanes % kPairs); },
      [&](Tiles& tiles, int begin, int end, int most) {
        for (int at = start; at < count; at += kPageTokens) {
          const uint16_t* k = (const uint16_t*)(pages[at / kPageTokens] + a.offset);
          Ahead ahead = begin > 0                  ? kNothing
                        : at + kPageTokens < count ? coming.keys(at + kPageTokens)
                                                   : coming.values(start);
          for (int first = begin; first < end; first += most)
            score_tile(tiles, q + (int64_t)first * lanes, lanes, k, coming.parts(at), a.scale, ahead,
                       a.scratch + (int64_t)first * kScoreStride + at, most);
        }
      });
  weigh_all<KvBf16>(a);
  for_row_tiles(
      rows, [](int most) { return attention_shapes(most, 0); },
      [&](Tiles& tiles, int begin, int end, int most) {
        for (int first = begin; first < end; first += most) {
          Mixing mixing(tiles, a, pages, v_at, first, most);
          const int parts = a.padded_dim / kLanes;
          for (int part = 0; part < parts; part += kMostSums)
            mixing.mix(part * kLanes, parts - part < kMostSums ? parts - part : kMostSums, [&](int page) {
              if (first + part > 0) return kNothing;
              return page + kPageTokens < count ? coming.values(page + kPageTokens) : coming.next(a.next);
            });
        }
      });
}

constexpr KvKernels tile_kernels() {
  return {(int32_t)sizeof(uint16_t), 2, 0, store_k<KvBf16>, store_v<KvBf16>, attend_tiles};
}

}  // namespace
}  // namespace GOSSAMER_NS
}  // namespace gossamer
