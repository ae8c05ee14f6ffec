// The attention of a block of tokens over the pages of its sequence, and what the cache holds. Each query's sums are
// taken in one order, positions and widths rising, whatever else is in the block.
#pragma once
#include "kernels/cpu/attend_rows-inl.h"
#include "kernels/vector_kernels.h"

namespace gossamer {
namespace GOSSAMER_NS {
namespace {

// How a type of cached keys and values lies in a page and is multiplied. A lane holds kTogether values that lie together:
// of K elements of one position, of V positions of one element.
struct KvF32 {
  typedef float Element;
  typedef float Operand;  // what a query's elements, and weights, are multiplied as: kTogether of them
  static constexpr int kTogether = 1;
  static GOSSAMER_INLINE F16 load16(const float* p) { return load(p); }
  static GOSSAMER_INLINE F16 splat_operand(const float* p) { return splat(*p); }
  static GOSSAMER_INLINE F16 add(const F16& sum, const F16& a, const F16& b) { return sum + a * b; }
  static GOSSAMER_INLINE float narrow(float value) { return value; }
};

struct KvF16 : KvF32 {
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

// Queries and weights are bf16, too, and go through vdpbf16ps where there is one. It takes the upper of two products
// first, rounds each sum as a fused multiply-add does, and flushes subnormal numbers. Two multiplications and additions
// are exactly the same, since products of bf16 fit a float, and since what is below 2^-50 counts as zero here, so that
// nothing subnormal comes up.
struct KvBf16 {
  typedef uint16_t Element;
  typedef uint32_t Operand;
  static constexpr int kTogether = 2;
  static GOSSAMER_INLINE I16 load16(const uint16_t* p) { return load_int(p); }
  static GOSSAMER_INLINE I16 splat_operand(const uint32_t* p) {
    int32_t pair;
    memcpy(&pair, p, 4);
    return splat_int(pair);
  }
  static GOSSAMER_INLINE F16 add(const F16& sum, const I16& a, const I16& b) {
#if defined(__AVX512BF16__)
    return {{(F16::Part)_mm512_dpbf16_ps((__m512)sum.part[0], (__m512bh)a.part[0], (__m512bh)b.part[0])}};
#else
    const I16 upper = splat_int((int32_t)0xffff0000U);
    const F16 first = sum + floats_of(a & upper) * floats_of(b & upper);
    return first + floats_of(a << 16) * floats_of(b << 16);
#endif
  }
  // The lower values alone.
  static GOSSAMER_INLINE I16 lower(const I16& values) { return values & splat_int(0xffff); }
  // Nearest even, clamped to the largest finite value.
  static GOSSAMER_INLINE uint16_t narrow(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    const uint32_t sign = (bits >> 16) & 0x8000U;
    const uint32_t magnitude = bits & 0x7fffffffU;
    if (magnitude > 0x7f800000U) return (uint16_t)(sign | 0x7fc0U);
    if (magnitude >= 0x7f7f8000U) return (uint16_t)(sign | 0x7f7fU);
    if (magnitude < 0x26800000U) return (uint16_t)sign;
    return (uint16_t)(sign | ((magnitude + 0x7fffU + ((magnitude >> 16) & 1U)) >> 16));
  }
};

// Bytes that 16 lanes read.
template <class Kv>
constexpr int kReadBytes = kLanes * Kv::kTogether * (int)sizeof(typename Kv::Element);

template <class Kv>
constexpr int k_rows(int head_dim) {
  return (head_dim + Kv::kTogether - 1) / Kv::kTogether * Kv::kTogether;
}

template <class Kv>
void store_k(const float* k, int32_t head_dim, uint8_t* page, int32_t slot) noexcept {
  constexpr int kTogether = Kv::kTogether;
  typename Kv::Element* to = (typename Kv::Element*)page + slot * kTogether;
  for (int32_t d = 0; d < k_rows<Kv>(head_dim); ++d)
    to[d / kTogether * kTogether * kPageTokens + d % kTogether] = Kv::narrow(d < head_dim ? k[d] : 0.0F);
}

template <class Kv>
void store_v(const float* v, int32_t head_dim, int32_t padded_dim, uint8_t* page, int32_t slot) noexcept {
  constexpr int kTogether = Kv::kTogether;
  typename Kv::Element* to =
      (typename Kv::Element*)page + (int64_t)(slot / kTogether) * kTogether * padded_dim + slot % kTogether;
  for (int32_t d = 0; d < head_dim; ++d) to[d * kTogether] = Kv::narrow(v[d]);
}

// Loops over registers are unrolled early here, so that no sum stays in memory.

// Scores of kRows queries, of `lanes` operands each, with kParts times 16 positions of a page. coming: what is fetched
// meanwhile, line by line as keys are read.
template <class Kv, int kRows, int kParts>
void score_page(const typename Kv::Operand* q, int32_t lanes, const typename Kv::Element* k, float scale, Ahead& coming,
                float* scores) {
  Ahead ahead = coming;
  F16 acc[kRows][kParts] = {};
  for (int32_t d = 0; d < lanes; ++d, k += kPageTokens * Kv::kTogether) {
    fetch<kParts * kReadBytes<Kv>>(ahead);
    decltype(Kv::load16(k)) keys[kParts];
#pragma GCC unroll 8
    for (int j = 0; j < kParts; ++j) keys[j] = Kv::load16(k + j * kLanes * Kv::kTogether);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const auto qd = Kv::splat_operand(q + r * lanes + d);
#pragma GCC unroll 8
      for (int j = 0; j < kParts; ++j) acc[r][j] = Kv::add(acc[r][j], qd, keys[j]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < kParts; ++j) store(scores + r * kScoreStride + j * kLanes, acc[r][j] * splat(scale));
  coming = ahead;
}

// Adds kParts times 16 elements of `count` times kTogether rows of V, each times its weight, to the outputs of kRows
// queries. kLower: what lies together with the first of them must not reach the outputs, were it infinite.
template <class Kv, int kRows, int kParts, bool kLower = false>
void mix_page(const typename Kv::Operand* weights, int count, const typename Kv::Element* v, int32_t padded_dim,
              Ahead& coming, float* const* outs, int32_t d) {
  constexpr int kTogether = Kv::kTogether;
  Ahead ahead = coming;
  F16 acc[kRows][kParts];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < kParts; ++j) acc[r][j] = load(outs[r] + d + j * kLanes);
  for (int t = 0; t < count; ++t, v += kTogether * padded_dim) {
    fetch<kParts * kReadBytes<Kv>>(ahead);
    decltype(Kv::load16(v)) values[kParts];
#pragma GCC unroll 8
    for (int j = 0; j < kParts; ++j) {
      values[j] = Kv::load16(v + j * kLanes * kTogether);
      if constexpr (kLower) values[j] = Kv::lower(values[j]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const auto weight = Kv::splat_operand(weights + r * kScoreStride + t);
#pragma GCC unroll 8
      for (int j = 0; j < kParts; ++j) acc[r][j] = Kv::add(acc[r][j], weight, values[j]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < kParts; ++j) store(outs[r] + d + j * kLanes, acc[r][j]);
  coming = ahead;
}

// Turns the scores of a query that are seen into weights exp(score - largest), zero beside them in the same 16.
template <class Kv>
GOSSAMER_INLINE void weigh(float* scores, const Seen& seen, float* top, float* sum) {
  *top = top_score(scores, seen, kLanes);
  F16 total = {};
  for (int at = seen.from / kLanes * kLanes; at < seen.to; at += kLanes) {
    const F16 weight = exponential(load(scores + at) - splat(*top));
    store(scores + at, weight);
    total += weight;
  }
  *sum = sum_lanes(total);
}

// The same as pairs of bf16 in the memory of the scores, zero in the same 32. Their sum is that of what is stored.
template <>
GOSSAMER_INLINE void weigh<KvBf16>(float* scores, const Seen& seen, float* top, float* sum) {
  *top = top_score(scores, seen, 2 * kLanes);
  uint16_t* weights = (uint16_t*)scores;
  const int first_weight = seen.from / (2 * kLanes) * 2 * kLanes;
  for (int at = first_weight; at < seen.to;
       at += 2 * kLanes) {  // both are read before what they become overwrites them
    const F16 first = short_exponential(load(scores + at) - splat(*top));
    const F16 second = short_exponential(load(scores + at + kLanes) - splat(*top));
    store_bf16(first, weights + at);
    store_bf16(second, weights + at + kLanes);
  }
  F16 total = {};
  const I16 ones = splat_int(0x3f803f80);
  for (int at = first_weight; at < seen.to; at += 2 * kLanes) total = KvBf16::add(total, ones, load_int(weights + at));
  *sum = sum_lanes(total);
}

// Queries one behind the other, as operands; returns where they are.
template <class Kv>
const typename Kv::Operand* operands(const AttentionArgs& a, float* room) {
  if (a.tokens == 1) return a.q;
  const size_t width = (size_t)a.query_heads * (size_t)a.head_dim;
  for (int t = 0; t < a.tokens; ++t) memcpy(room + (size_t)t * width, a.q + t * a.q_stride, sizeof(float) * width);
  return room;
}

template <>
const uint32_t* operands<KvBf16>(const AttentionArgs& a, float* room) {
  const int width = k_rows<KvBf16>(a.head_dim);
  uint16_t* to = (uint16_t*)room;
  for (int t = 0; t < a.tokens; ++t) {
    for (int h = 0; h < a.query_heads; ++h, to += width) {
      const float* q = a.q + t * a.q_stride + (int64_t)h * a.head_dim;
      int d = 0;
      for (; d + kLanes <= a.head_dim; d += kLanes) store_bf16(bounded(load(q + d)), to + d);
      for (; d < width; ++d) to[d] = KvBf16::narrow(d < a.head_dim ? q[d] : 0.0F);
    }
  }
  return (const uint32_t*)room;
}

// Turns all scores into weights, with their largest and their sum in the results.
template <class Kv>
void weigh_all(const AttentionArgs& a) {
  const int group = a.query_heads;
  for (int t = 0; t < a.tokens; ++t) {
    float* scores = a.scratch + (int64_t)t * group * kScoreStride;
    float* result = a.results + t * a.result_stride;
    const Seen seen = seen_by(a, t);
    bend_heads(a, t, seen, scores);
    for (int h = 0; h < group; ++h) weigh<Kv>(scores + (int64_t)h * kScoreStride, seen, result + h, result + group + h);
  }
}

template <class Kv>
void attend(const AttentionArgs& a) noexcept {
  typedef typename Kv::Element Element;
  typedef typename Kv::Operand Operand;
  const uint8_t* const* pages = a.pages + a.begin / kPageTokens;
  const int group = a.query_heads;
  const int rows = a.tokens * group;
  const int count = a.end - a.begin;
  // Positions that all tokens see; and where the first page begins of which one sees some.
  const Seen shared = {seen_by(a, a.tokens - 1).from, seen_by(a, 0).to};
  const int start = seen_by(a, 0).from / kPageTokens * kPageTokens;
  const int64_t v_at = a.offset + (int64_t)k_rows<Kv>(a.head_dim) * kPageTokens * (int64_t)sizeof(Element);
  float* scores = a.scratch;
  const Operand* q = operands<Kv>(a, scores + (int64_t)rows * kScoreStride);
  const int lanes = k_rows<Kv>(a.head_dim) / Kv::kTogether;  // of a query
  const int64_t k_row = kPageTokens * Kv::kTogether * (int64_t)sizeof(Element);
  const Coming coming = {pages, count, a.offset, v_at - a.offset, v_at, k_row, a.padded_dim * (int64_t)sizeof(Element)};
  Ahead nothing = kNothing;
  for (int at = start; at < count; at += kPageTokens) {
    const Element* k = (const Element*)(pages[at / kPageTokens] + a.offset);
    Ahead ahead = at + kPageTokens < count ? coming.keys(at + kPageTokens) : coming.values(start);
    const int parts = coming.parts(at);
    for_tiles(rows, [&](auto tile, int first) {
      constexpr int kRows = decltype(tile)::value;
      constexpr int kMost = parts_a_pass<kRows>();
      for (int part = 0; part < parts; part += kMost)
        with_parts<kMost>(parts - part, [&](auto some) {
          score_page<Kv, kRows, decltype(some)::value>(
              q + (int64_t)first * lanes, lanes, k + part * kLanes * Kv::kTogether, a.scale,
              first == 0 ? ahead : nothing, scores + (int64_t)first * kScoreStride + at + part * kLanes);
        });
    });
  }
  weigh_all<Kv>(a);
  for (int t = 0; t < a.tokens; ++t)
    memset(a.results + t * a.result_stride + 2 * group, 0, sizeof(float) * (size_t)group * (size_t)a.padded_dim);
  // Adds the positions [at, at + some) of one page, `at` one that begins values that lie together, for `many` rows from
  // `begin` on.
  const auto mix = [&](int begin, int many, int at, int some, Ahead ahead) {
    const Element* v = (const Element*)(pages[at / kPageTokens] + v_at) + (int64_t)(at % kPageTokens) * a.padded_dim;
    for_tiles(many, [&](auto tile, int first) {
      constexpr int kRows = decltype(tile)::value;
      constexpr int kMost = parts_a_pass<kRows>();
      float* outs[kRows];
      for (int r = 0; r < kRows; ++r) {
        const int row = begin + first + r;
        outs[r] = a.results + row / group * a.result_stride + 2 * group + (int64_t)(row % group) * a.padded_dim;
      }
      const Operand* weights = (const Operand*)(scores + (int64_t)(begin + first) * kScoreStride) + at / Kv::kTogether;
      const int parts = a.padded_dim / kLanes;
      for (int part = 0; part < parts; part += kMost)
        with_parts<kMost>(parts - part, [&](auto width) {
          constexpr int kParts = decltype(width)::value;
          const Element* from = v + part * kLanes * Kv::kTogether;
          const int whole = some / Kv::kTogether;
          mix_page<Kv, kRows, kParts>(weights, whole, from, a.padded_dim, first == 0 ? ahead : nothing, outs,
                                      part * kLanes);
          if constexpr (Kv::kTogether == 2) {
            if (some % 2 != 0)
              mix_page<Kv, kRows, kParts, true>(weights + whole, 1, from + (int64_t)whole * 2 * a.padded_dim,
                                                a.padded_dim, nothing, outs, part * kLanes);
          }
        });
    });
  };
  for (int at = start; at < count; at += kPageTokens) {
    const int end = at + kPageTokens < count ? at + kPageTokens : count;
    if (shared.from <= at && shared.to >= end) {
      mix(0, rows, at, end - at, end < count ? coming.values(end) : coming.next(a.next));
      continue;
    }
    for (int t = 0; t < a.tokens; ++t) {  // what a token does not see must not reach it, were it infinite
      const Seen seen = seen_by(a, t);
      const int from = seen.from < at ? at : seen.from / Kv::kTogether * Kv::kTogether;
      const int to = seen.to < end ? seen.to : end;
      if (to > from) mix(t * group, group, from, to - from, kNothing);
    }
  }
}

template <class Kv>
constexpr KvKernels kv_kernels() {
  return {(int32_t)sizeof(typename Kv::Element), Kv::kTogether, 0, store_k<Kv>, store_v<Kv>, attend<Kv>};
}

}  // namespace
}  // namespace GOSSAMER_NS
}  // namespace gossamer
