// Attention over a cache of 8-bit codes. Keys are unsigned, code + 128, values signed; queries and weights are numbers
// of 16 bits, so that all sums are those of integers, exact and the same on every tier.
#pragma once
#include "kernels/cpu/code_dots-inl.h"

namespace gossamer {
namespace GOSSAMER_NS {
namespace {

constexpr int kCodeBytes = kLanes * kFour;                // of 16 positions of K, or 16 elements of V
constexpr int kScaleBytes = kPageTokens * sizeof(float);  // behind K and behind V
constexpr float kCodeMost = 127;
constexpr float kQueryMost = 127 * 256;  // the upper digit has 8 bits, the lower one is signed
constexpr float kWeightMost = 32767;
constexpr int kMassTiles = kPageTokens / kLanes;

GOSSAMER_INLINE int fours(int n) { return (n + kFour - 1) / kFour; }
GOSSAMER_INLINE int64_t code_k_bytes(int head_dim) { return (int64_t)fours(head_dim) * kFour * kPageTokens; }

// A finite number for each that is not NaN: neither an entry of the cache nor a query must become infinite.
GOSSAMER_INLINE F16 finite(const F16& v) {
  const F16 most = splat(3.4028234e38F);
  const F16 up = each<float>(v, most, [](auto a, auto b) { return a > b ? b : a; });
  return each<float>(up, -most, [](auto a, auto b) { return a < b ? b : a; });
}

// What a run of numbers becomes: number / scale, rounded to even, at most `most`; a scale of NaN, and zeros, where one
// of them is NaN. Zeros, too, where all are so small that 1 / scale has no number.
struct Rounding {
  F16 largest = {};
  I16 bad = {};
  float inverse, scale;

  GOSSAMER_INLINE void see(const F16& v) {
    largest = maximum(largest, maximum(v, -v));
    bad |= is_nan(v);
  }
  GOSSAMER_INLINE void settle(float most) {
    const float magnitude = max_lanes(largest);
    const float factor = magnitude > 0 ? most / magnitude : 0.0F;
    const bool poisoned = fold_lanes(bad, [](auto a, auto b) { return a | b; }) != 0;
    inverse = poisoned || !(factor < INFINITY) ? 0.0F : factor;
    scale = poisoned ? NAN : magnitude / most;
  }
  GOSSAMER_INLINE I16 number(const F16& v) const {
    return inverse == 0 ? I16{} : to_int(round_even(v * splat(inverse)));
  }
};

GOSSAMER_INLINE F16 some_of(const float* x, int d, int n) {
  return finite(n - d >= kLanes ? load(x + d) : load_part(x + d, n - d));
}

// Calls `put(element, code)` for each of `n`; returns their scale.
template <class Put>
GOSSAMER_INLINE float encode(const float* x, int n, const Put& put) {
  Rounding rounding;
  for (int d = 0; d < n; d += kLanes) rounding.see(some_of(x, d, n));
  rounding.settle(kCodeMost);
  for (int d = 0; d < n; d += kLanes) {
    int8_t codes[kLanes];
    store_codes(rounding.number(some_of(x, d, n)), codes);
    for (int i = 0; i < kLanes; ++i)
      if (d + i < n) put(d + i, codes[i]);
  }
  return rounding.scale;
}

void store_k_codes(const float* k, int32_t head_dim, uint8_t* page, int32_t slot) noexcept {
  uint8_t* to = page + slot * kFour;
  const auto put = [to](int d, int8_t code) {
    to[d / kFour * kFour * kPageTokens + d % kFour] = (uint8_t)(code + 128);
  };
  ((float*)(page + code_k_bytes(head_dim)))[slot] = encode(k, head_dim, put);
  for (int d = head_dim; d % kFour != 0; ++d) put(d, 0);
}

void store_v_codes(const float* v, int32_t head_dim, int32_t padded_dim, uint8_t* page, int32_t slot) noexcept {
  uint8_t* to = page + (int64_t)(slot / kFour) * kFour * padded_dim + slot % kFour;
  const auto put = [to](int d, int8_t code) { to[d * kFour] = (uint8_t)code; };
  ((float*)(page + (int64_t)kPageTokens * padded_dim))[slot] = encode(v, head_dim, put);
}

// What belongs to a query's numbers: the factor of its scores, and what its products with 128 sum up to, negative.
struct Query {
  float scale;
  int32_t surplus[2];
};

// Bytes of its numbers.
GOSSAMER_INLINE int query_bytes(int head_dim) { return fours(head_dim) * kFour * 2; }

GOSSAMER_INLINE void write_query(const float* q, int head_dim, float scale, uint8_t* numbers, Query& query) {
  Rounding rounding;
  for (int d = 0; d < head_dim; d += kLanes) rounding.see(some_of(q, d, head_dim));
  rounding.settle(kQueryMost);
  const int width = fours(head_dim) * kFour;
  I16 sums[2] = {};
  for (int d = 0; d < width; d += kLanes) {
    const I16 number = rounding.number(some_of(q, d, head_dim));
    count_surplus(number, sums);
    if (width - d >= kLanes) {
      store_numbers<true>(number, numbers + d * kNumberStep, width);
      continue;
    }
    uint8_t rest[2 * kLanes];
    store_numbers<true>(number, rest, kLanes);
    memcpy(numbers + d * kNumberStep, rest, (size_t)((width - d) * kNumberStep));
    if (kNumberStep == 1) memcpy(numbers + width + d, rest + kLanes, (size_t)(width - d));
  }
  query.scale = rounding.scale * scale;
  for (int i = 0; i < 2; ++i) query.surplus[i] = -128 * fold_lanes(sums[i], [](auto a, auto b) { return a + b; });
}

// Loops over registers are unrolled early here, and bodies stand apart, so that no sum stays in memory.

// Scores of kRows queries with kParts times 16 positions of a page. coming: what is fetched meanwhile, line by line as
// keys are read.
template <int kRows, int kParts>
__attribute__((noinline)) void score_codes(const Query* queries, const uint8_t* numbers, int groups, const uint8_t* k,
                                           const float* k_scales, Ahead& coming, float* scores) {
  Ahead ahead = coming;
  I16::Part sums[kRows][kParts][kDotParts];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < kParts; ++j) begin_dots(sums[r][j], queries[r].surplus);
  }
  const int digits = groups * kFour;
  for (int g = 0; g < groups; ++g, k += kPageTokens * kFour) {
    fetch<kParts * kCodeBytes>(ahead);
    I16 codes[kParts];
#pragma GCC unroll 8
    for (int j = 0; j < kParts; ++j) codes[j] = load_int(k + j * kCodeBytes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const uint8_t* q = numbers + r * 2 * digits + g * kFour * kNumberStep;
#pragma GCC unroll 8
      for (int j = 0; j < kParts; ++j) add_keys(sums[r][j], codes[j], q, digits);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const F16 scale = splat(queries[r].scale);
#pragma GCC unroll 8
    for (int j = 0; j < kParts; ++j)
      store(scores + r * kScoreStride + j * kLanes, total_of(sums[r][j]) * load(k_scales + j * kLanes) * scale);
  }
  coming = ahead;
}

// Adds kParts times 16 elements of `groups` times 4 rows of V, each times its weight, to the outputs of kRows queries.
// weights: of a page, in the memory of its scores; scales: theirs.
template <int kRows, int kParts>
__attribute__((noinline)) void mix_codes(const float* weights, const float* scales, int groups, const uint8_t* v,
                                         int32_t padded_dim, Ahead& coming, float* const* outs, int32_t d) {
  Ahead ahead = coming;
  static const int32_t kNone[2] = {0, 0};
  I16::Part sums[kRows][kParts][kDotParts];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < kParts; ++j) begin_dots(sums[r][j], kNone);
  }
  for (int g = 0; g < groups; ++g, v += kFour * padded_dim) {
    fetch<kParts * kCodeBytes>(ahead);
    I16 codes[kParts];
#pragma GCC unroll 8
    for (int j = 0; j < kParts; ++j) codes[j] = load_int(v + j * kCodeBytes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Spread weight = spread((const uint8_t*)(weights + r * kScoreStride) + g * kFour * kNumberStep, kPageTokens);
#pragma GCC unroll 8
      for (int j = 0; j < kParts; ++j) add_values(sums[r][j], codes[j], weight);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    float* out = outs[r] + d;
    const F16 scale = splat(scales[r * kScoreStride]);
#pragma GCC unroll 8
    for (int j = 0; j < kParts; ++j) store(out + j * kLanes, load(out + j * kLanes) + total_of(sums[r][j]) * scale);
  }
  coming = ahead;
}

// Turns the scores of a query into weights exp(score - largest) times the scale of the value that they meet, zero where
// nothing is seen: numbers in the memory of the scores of each page, and their scales behind the last one.
GOSSAMER_INLINE void weigh_codes(float* scores, const Seen& seen, const AttentionArgs& a, int start, int count,
                                 float* top, float* sum) {
  *top = top_score(scores, seen, kLanes);
  F16 total = {};
  const int64_t scales_at = a.offset + code_k_bytes(a.head_dim) + kScaleBytes + (int64_t)kPageTokens * a.padded_dim;
  for (int at = start; at < count; at += kPageTokens) {
    const float* scales = (const float*)(a.pages[(a.begin + at) / kPageTokens] + scales_at);
    F16 weights[kMassTiles];
    Rounding rounding;
    for (int j = 0; j < kMassTiles; ++j) {
      const int from = at + j * kLanes;
      weights[j] = {};
      if (from + kLanes <= seen.from || from >= seen.to) continue;
      const F16 mass = short_exponential(load(scores + from) - splat(*top));
      total += mass;
      // A position without weight has a scale that must not come in, were it infinite.
      const I16 some = less(I16{}, bits_of(mass) & splat_int(0x7fffffff));
      weights[j] = floats_of(bits_of(mass * load(scales + j * kLanes)) & some);
      rounding.see(weights[j]);
    }
    rounding.settle(kWeightMost);
    uint8_t* numbers = (uint8_t*)(scores + at);
    for (int j = 0; j < kMassTiles; ++j)
      store_numbers<false>(rounding.number(weights[j]), numbers + j * kLanes * kNumberStep, kPageTokens);
    scores[kAttentionSpan + at / kPageTokens] = rounding.scale;
  }
  *sum = sum_lanes(total);
}

// All queries as numbers, which lie `query_bytes` apart.
GOSSAMER_INLINE void write_queries(const AttentionArgs& a, Query* queries, uint8_t* numbers) {
  const int group = a.query_heads;
  for (int row = 0; row < a.tokens * group; ++row)
    write_query(a.q + row / group * a.q_stride + (int64_t)(row % group) * a.head_dim, a.head_dim, a.scale,
                numbers + row * query_bytes(a.head_dim), queries[row]);
}

// Turns all scores into weights, with their largest and their sum in the results, and clears what is mixed behind them.
inline void weigh_all_codes(const AttentionArgs& a, int start, int count) {
  const int group = a.query_heads;
  for (int t = 0; t < a.tokens; ++t) {
    float* result = a.results + t * a.result_stride;
    const Seen seen = seen_by(a, t);
    float* mine = a.scratch + (int64_t)t * group * kScoreStride;
    bend_heads(a, t, seen, mine);
    for (int h = 0; h < group; ++h)
      weigh_codes(mine + (int64_t)h * kScoreStride, seen, a, start, count, result + h, result + group + h);
    memset(result + 2 * group, 0, sizeof(float) * (size_t)group * (size_t)a.padded_dim);
  }
}

void attend_codes(const AttentionArgs& a) noexcept {
  const uint8_t* const* pages = a.pages + a.begin / kPageTokens;
  const int group = a.query_heads;
  const int rows = a.tokens * group;
  const int count = a.end - a.begin;
  const int start = seen_by(a, 0).from / kPageTokens * kPageTokens;  // of the first page of which one sees some
  const int64_t v_at = a.offset + code_k_bytes(a.head_dim) + kScaleBytes;
  const int groups = fours(a.head_dim);
  // The scales of keys are fetched as one lane more of them.
  const int64_t k_bytes = code_k_bytes(a.head_dim) + kScaleBytes;
  const Coming coming = {pages, count, a.offset, k_bytes, v_at, kPageTokens * kFour, a.padded_dim};
  Ahead nothing = kNothing;
  float* scores = a.scratch;
  Query* queries = (Query*)(scores + (int64_t)rows * kScoreStride);
  uint8_t* numbers = (uint8_t*)(queries + rows);
  const int query_stride = query_bytes(a.head_dim);
  write_queries(a, queries, numbers);
  for (int at = start; at < count; at += kPageTokens) {
    const uint8_t* page = pages[at / kPageTokens];
    const uint8_t* k = page + a.offset;
    const float* k_scales = (const float*)(k + code_k_bytes(a.head_dim));
    Ahead v_scales = Coming::all(page + v_at + (int64_t)kPageTokens * a.padded_dim, kScaleBytes);
    fetch<kScaleBytes>(v_scales);
    Ahead ahead = at + kPageTokens < count ? coming.keys(at + kPageTokens) : coming.values(start);
    const int parts = coming.parts(at);
    for_tiles(rows, [&](auto tile, int first) {
      constexpr int kRows = decltype(tile)::value;
      constexpr int kMost = code_parts_a_pass<kRows>();
      for (int part = 0; part < parts; part += kMost)
        with_parts<kMost>(parts - part, [&](auto some) {
          score_codes<kRows, decltype(some)::value>(
              queries + first, numbers + first * query_stride, groups, k + part * kCodeBytes, k_scales + part * kLanes,
              first == 0 ? ahead : nothing, scores + (int64_t)first * kScoreStride + at + part * kLanes);
        });
    });
  }
  weigh_all_codes(a, start, count);
  for (int at = start; at < count; at += kPageTokens) {
    const uint8_t* v = pages[at / kPageTokens] + v_at;
    const int end = at + kPageTokens;
    Ahead ahead = end < count ? coming.values(end) : coming.next(a.next);
    const int some = fours(coming.positions(at));
    for_tiles(rows, [&](auto tile, int first) {
      constexpr int kRows = decltype(tile)::value;
      constexpr int kMost = code_parts_a_pass<kRows>();
      float* outs[kRows];
      for (int r = 0; r < kRows; ++r) {
        const int row = first + r;
        outs[r] = a.results + row / group * a.result_stride + 2 * group + (int64_t)(row % group) * a.padded_dim;
      }
      const float* mine = scores + (int64_t)first * kScoreStride;
      const int parts = a.padded_dim / kLanes;
      for (int part = 0; part < parts; part += kMost)
        with_parts<kMost>(parts - part, [&](auto width) {
          mix_codes<kRows, decltype(width)::value>(mine + at, mine + kAttentionSpan + at / kPageTokens, some,
                                                   v + part * kCodeBytes, a.padded_dim, first == 0 ? ahead : nothing,
                                                   outs, part * kLanes);
        });
    });
  }
}

constexpr KvKernels code_kernels() { return {1, kFour, sizeof(float), store_k_codes, store_v_codes, attend_codes}; }

}  // namespace
}  // namespace GOSSAMER_NS
}  // namespace gossamer
