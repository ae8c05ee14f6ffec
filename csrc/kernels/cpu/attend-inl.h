// The attention of a block of tokens over the pages of its sequence, and what the cache holds. Each query's sums are
// taken in one order, positions and widths rising, whatever else is in the block.
#pragma once
#include "kernels/cpu/lanes-inl.h"
#include "kernels/vector_kernels.h"

namespace gossamer {
namespace GOSSAMER_NS {
namespace {

struct KvF32 {
  typedef float Element;
  static GOSSAMER_INLINE F16 load16(const float* p) { return load(p); }
  static GOSSAMER_INLINE float narrow(float value) { return value; }
};

struct KvF16 {
  typedef uint16_t Element;
  static GOSSAMER_INLINE F16 load16(const uint16_t* p) { return load_f16(p); }
  // Nearest even, clamped to the largest finite value: a KV entry must not become infinite.
  static GOSSAMER_INLINE uint16_t narrow(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    const uint32_t sign = (bits >> 16) & 0x8000U;
    const uint32_t magnitude = bits & 0x7fffffffU;
    if (magnitude > 0x7f800000U) return (uint16_t)(sign | 0x7e00U);
    if (magnitude >= 0x477fe000U) return (uint16_t)(sign | 0x7bffU);
    if (magnitude < 0x38800000U) {
      float shifted;
      memcpy(&shifted, &magnitude, 4);
      shifted += 0.5F;
      memcpy(&bits, &shifted, 4);
      return (uint16_t)(sign | (bits - 0x3f000000U));
    }
    return (uint16_t)(sign | ((magnitude - (112U << 23) + 0xfffU + ((magnitude >> 13) & 1U)) >> 13));
  }
};

template <class Kv>
void store_k(const float* k, int32_t head_dim, uint8_t* page, int32_t slot) noexcept {
  typename Kv::Element* to = (typename Kv::Element*)page;
  for (int32_t d = 0; d < head_dim; ++d) to[d * kPageTokens + slot] = Kv::narrow(k[d]);
}

template <class Kv>
void store_v(const float* v, int32_t head_dim, int32_t padded_dim, uint8_t* page, int32_t slot) noexcept {
  typename Kv::Element* to = (typename Kv::Element*)page + (int64_t)slot * padded_dim;
  for (int32_t d = 0; d < head_dim; ++d) to[d] = Kv::narrow(v[d]);
}

// Registers of 16 lanes that the sums of kRows queries leave room for.
template <int kRows>
constexpr int parts_a_pass() {
#if defined(__AVX512F__)
  return 4;
#else
  return kRows == 1 ? 4 : kRows == 2 ? 2 : 1;
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

// Scores of kRows queries with kParts times 16 positions of a page.
template <class Kv, int kRows, int kParts>
void score_page(const float* q, int32_t head_dim, const typename Kv::Element* k, float scale, float* scores) {
  F16 acc[kRows][kParts] = {};
  for (int32_t d = 0; d < head_dim; ++d, k += kPageTokens) {
    F16 keys[kParts];
    for (int j = 0; j < kParts; ++j) keys[j] = Kv::load16(k + j * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const F16 qd = splat(q[r * head_dim + d]);
      for (int j = 0; j < kParts; ++j) acc[r][j] += qd * keys[j];
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int j = 0; j < kParts; ++j) store(scores + r * kScoreStride + j * kLanes, acc[r][j] * splat(scale));
}

// Adds kParts times 16 elements of `count` rows of V, each times its weight, to the outputs of kRows queries.
template <class Kv, int kRows, int kParts>
void mix_page(const float* weights, int count, const typename Kv::Element* v, int32_t padded_dim, float* const* outs,
              int32_t d) {
  F16 acc[kRows][kParts];
  for (int r = 0; r < kRows; ++r)
    for (int j = 0; j < kParts; ++j) acc[r][j] = load(outs[r] + d + j * kLanes);
  for (int t = 0; t < count; ++t, v += padded_dim) {
    F16 values[kParts];
    for (int j = 0; j < kParts; ++j) values[j] = Kv::load16(v + j * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const F16 weight = splat(weights[r * kScoreStride + t]);
      for (int j = 0; j < kParts; ++j) acc[r][j] += weight * values[j];
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int j = 0; j < kParts; ++j) store(outs[r] + d + j * kLanes, acc[r][j]);
}

// Turns the first `count` scores of a query into weights exp(score - largest), zero up to the next 16.
GOSSAMER_INLINE void weigh(float* scores, int count, float* top, float* sum) {
  F16 largest = splat(-INFINITY);
  for (int at = 0; at < count; at += kLanes) {
    if (at + kLanes > count)
      for (int i = count; i < at + kLanes; ++i) scores[i] = -INFINITY;
    largest = maximum(largest, load(scores + at));
  }
  *top = max_lanes(largest);
  F16 total = {};
  for (int at = 0; at < count; at += kLanes) {
    const F16 weight = exponential(load(scores + at) - splat(*top));
    store(scores + at, weight);
    total += weight;
  }
  *sum = sum_lanes(total);
}

template <class Kv>
void attend(const AttentionArgs& a) noexcept {
  typedef typename Kv::Element Element;
  const uint8_t* const* pages = a.pages + a.begin / kPageTokens;
  const int group = a.query_heads;
  const int rows = a.tokens * group;
  const int count = a.end - a.begin;
  // Positions of the span that the first token sees; each further one sees one more, up to all.
  const int shared = a.position + 1 - a.begin < count ? a.position + 1 - a.begin : count;
  float* scores = a.scratch;
  const float* q = a.q;
  if (a.tokens > 1) {  // the queries one behind the other
    float* packed = scores + (int64_t)rows * kScoreStride;
    const size_t width = (size_t)group * (size_t)a.head_dim;
    for (int t = 0; t < a.tokens; ++t) memcpy(packed + (size_t)t * width, a.q + t * a.q_stride, sizeof(float) * width);
    q = packed;
  }
  for (int at = 0; at < count; at += kPageTokens) {
    const Element* k = (const Element*)(pages[at / kPageTokens] + a.offset);
    const int parts = ((count - at < kPageTokens ? count - at : kPageTokens) + kLanes - 1) / kLanes;
    for_tiles(rows, [&](auto tile, int first) {
      constexpr int kRows = decltype(tile)::value;
      constexpr int kMost = parts_a_pass<kRows>();
      for (int part = 0; part < parts; part += kMost)
        with_parts<kMost>(parts - part, [&](auto some) {
          score_page<Kv, kRows, decltype(some)::value>(q + (int64_t)first * a.head_dim, a.head_dim, k + part * kLanes,
                                                       a.scale,
                                                       scores + (int64_t)first * kScoreStride + at + part * kLanes);
        });
    });
  }
  for (int t = 0; t < a.tokens; ++t) {
    float* result = a.results + t * a.result_stride;
    const int seen = shared + t < count ? shared + t : count;
    for (int h = 0; h < group; ++h)
      weigh(scores + (int64_t)(t * group + h) * kScoreStride, seen, result + h, result + group + h);
    memset(result + 2 * group, 0, sizeof(float) * (size_t)group * (size_t)a.padded_dim);
  }
  // Adds the positions [at, at + some) of one page for `many` rows from `begin` on.
  const auto mix = [&](int begin, int many, int at, int some) {
    const Element* v = (const Element*)(pages[at / kPageTokens] + a.offset) + (int64_t)a.head_dim * kPageTokens;
    for_tiles(many, [&](auto tile, int first) {
      constexpr int kRows = decltype(tile)::value;
      constexpr int kMost = parts_a_pass<kRows>();
      float* outs[kRows];
      for (int r = 0; r < kRows; ++r) {
        const int row = begin + first + r;
        outs[r] = a.results + row / group * a.result_stride + 2 * group + (int64_t)(row % group) * a.padded_dim;
      }
      const float* weights = scores + (int64_t)(begin + first) * kScoreStride + at;
      const int parts = a.padded_dim / kLanes;
      for (int part = 0; part < parts; part += kMost)
        with_parts<kMost>(parts - part, [&](auto width) {
          mix_page<Kv, kRows, decltype(width)::value>(weights, some, v + part * kLanes, a.padded_dim, outs,
                                                      part * kLanes);
        });
    });
  };
  for (int at = 0; at < count; at += kPageTokens) {
    const int end = at + kPageTokens < count ? at + kPageTokens : count;
    if (shared >= end) {
      mix(0, rows, at, end - at);
      continue;
    }
    for (int t = 0; t < a.tokens; ++t) {  // what a token does not see must not reach it, were it infinite
      const int seen = shared + t < end ? shared + t : end;
      if (seen > at) mix(t * group, group, at, seen - at);
    }
  }
}

}  // namespace
}  // namespace GOSSAMER_NS
}  // namespace gossamer
