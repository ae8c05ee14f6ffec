// What the attentions over caches of all types share: tiles of queries, what a token sees, and what bends its scores.
#pragma once
#include "kernels/cpu/lanes-inl.h"
#include "kernels/vector_kernels.h"

namespace gossamer {
namespace GOSSAMER_NS {
namespace {

// Registers of 16 lanes that the sums of kRows queries leave room for.
template <int kRows>
constexpr int parts_a_pass() {
#if defined(__AVX512F__)
  return 4;
#else
  return kRows == 1 ? 4 : kRows <= 3 ? 2 : 1;
#endif
}

// Calls `body` with 1 to kMost, as a constant.
template <int kMost, class Body>
GOSSAMER_INLINE void with_parts(int parts, const Body& body) {
  if constexpr (kMost >= 4) {
    if (parts >= 4) return body(Constant<4>{});
    if (parts == 3) return body(Constant<3>{});
  }
  if constexpr (kMost >= 2)
    if (parts >= 2) return body(Constant<2>{});
  body(Constant<1>{});
}

// Calls `body(constant, first)` for tiles of up to 6 of `rows` rows: queries that share what is loaded of K and V.
template <class Body>
GOSSAMER_INLINE void for_tiles(int rows, const Body& body) {
  int first = 0;
  for (; first + 6 <= rows; first += 6) body(Constant<6>{}, first);
  if (first + 4 <= rows) {
    body(Constant<4>{}, first);
    first += 4;
  }
  if (first + 3 == rows) return body(Constant<3>{}, first);
  if (first + 2 == rows) return body(Constant<2>{}, first);
  if (first + 1 == rows) return body(Constant<1>{}, first);
}

// Positions of a span, from its start.
struct Seen {
  int from, to;
};

// Those that a token sees.
GOSSAMER_INLINE Seen seen_by(const AttentionArgs& a, int token) {
  const int count = a.end - a.begin;
  const int next = a.position + token + 1 - a.begin;
  const int last = next + a.ahead;
  return {a.window == 0 || next <= a.window ? 0 : next - a.window, last < count ? last : count};
}

// What is fetched while something else is read, in the order of memory: the first bytes of each row.
struct Ahead {
  const uint8_t* row;  // that is being fetched
  const uint8_t* end;  // of all rows
  int64_t stride;      // from row to row
  int64_t bytes;       // of a row that are wanted
  int64_t done;        // of these
};

constexpr Ahead kNothing = {0, 0, 0, 0, 0};

// Fetches as many lines as kBytes are, one at least: into the second cache, since the first is left waiting for each line
// before it lets go of it, and then has few under way at once. Lines in order are what memory gives fastest, whatever the
// order that they are read in.
template <int kBytes>
GOSSAMER_INLINE void fetch(Ahead& ahead) {
  for (int i = 0; i < kBytes || i == 0; i += 64) {
    if (ahead.row >= ahead.end) return;
    __builtin_prefetch(ahead.row + ahead.done, 0, 2);
    ahead.done += 64;
    if (ahead.done < ahead.bytes) continue;
    ahead.done = 0;
    ahead.row += ahead.stride;
  }
}

// Where a head's keys and values come next in a span. What nobody will read, the rest of the last page, is left there.
struct Coming {
  const uint8_t* const* pages;
  int count;  // positions
  int64_t k_at, k_bytes, v_at;
  int64_t k_row;        // bytes from lanes of K to the next
  int64_t value_bytes;  // of a position of V

  GOSSAMER_INLINE int positions(int at) const { return count - at < kPageTokens ? count - at : kPageTokens; }
  GOSSAMER_INLINE int parts(int at) const { return (positions(at) + kLanes - 1) / kLanes; }
  GOSSAMER_INLINE Ahead keys(int at) const {
    const uint8_t* first = pages[at / kPageTokens] + k_at;
    if (parts(at) * kLanes == kPageTokens) return all(first, k_bytes);
    return {first, first + k_bytes, k_row, k_row / kPageTokens * kLanes * parts(at), 0};
  }
  GOSSAMER_INLINE Ahead values(int at) const {
    return all(pages[at / kPageTokens] + v_at, positions(at) * value_bytes);
  }
  // What comes behind the span, of which nothing else is known; null for nothing.
  GOSSAMER_INLINE Ahead next(const uint8_t* first) const {
    return first == 0 ? kNothing : all(first, kPageTokens * value_bytes);
  }
  static GOSSAMER_INLINE Ahead all(const uint8_t* first, int64_t bytes) {
    return {first, first + bytes, bytes, bytes, 0};
  }
};

// Caps a query's scores, takes off what its distance costs, and adds a bias. `distance` is that of the span's start, and
// so is the first bias.
GOSSAMER_INLINE void bend(float* scores, const Seen& seen, float softcap, float slope, int distance,
                          const float* bias) {
  static const float kCounted[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  for (int at = seen.from / kLanes * kLanes; at < seen.to; at += kLanes) {
    F16 score = load(scores + at);
    if (softcap != 0) score = splat(softcap) * hyperbolic_tangent(score / splat(softcap));
    if (slope != 0) score = score - splat(slope) * (splat((float)(distance - at)) - load(kCounted));
    if (bias != 0) score = score + load(bias + at);
    store(scores + at, score);
  }
}

// Bends the scores of all heads of a token, kScoreStride apart, where anything does.
GOSSAMER_INLINE void bend_heads(const AttentionArgs& a, int token, const Seen& seen, float* scores) {
  if (a.softcap == 0 && a.slopes == 0 && a.bias == 0) return;
  const int distance = a.position + token - a.begin;
  for (int h = 0; h < a.query_heads; ++h)
    bend(scores + (int64_t)h * kScoreStride, seen, a.softcap, a.slopes != 0 ? a.slopes[h] : 0.0F, distance,
         a.bias != 0 ? a.bias + h * a.bias_stride - distance : 0);
}

// The largest of the scores that are seen; those beside them in the same `step` become less than any.
GOSSAMER_INLINE float top_score(float* scores, const Seen& seen, int step) {
  for (int i = seen.from; i % step != 0;) scores[--i] = -INFINITY;
  for (int i = seen.to; i % step != 0; ++i) scores[i] = -INFINITY;
  F16 largest = splat(-INFINITY);
  for (int at = seen.from / step * step; at < seen.to; at += kLanes) largest = maximum(largest, load(scores + at));
  return max_lanes(largest);
}

}  // namespace
}  // namespace GOSSAMER_NS
}  // namespace gossamer
