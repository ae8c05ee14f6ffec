// The small kernels around the linear ones: one shared body (cpu/vector-inl.h) compiled for several ISAs. Plain data.
#ifndef GOSSAMER_KERNELS_VECTOR_KERNELS_H_
#define GOSSAMER_KERNELS_VECTOR_KERNELS_H_

#include <stdint.h>

namespace gossamer {

enum class KvType : uint8_t { kF32, kF16, kBf16, kInt8 };

constexpr int kKvTypeCount = 4;

// Elements of a head whose products with 16 bits still have a sum of 32.
constexpr int kMostCodeDim = 512;

// Element types of tensors that come from elsewhere.
enum class FloatType : uint8_t { kF32, kBf16, kF16 };

// Tokens a page of the KV cache.
constexpr int kPageTokens = 64;

// Positions that one attention task covers; longer contexts are split here, whatever the number of threads.
constexpr int kAttentionSpan = 512;

// Rows of scores lie this many floats apart, so that few of them meet in one set of the cache.
constexpr int kScoreStride = kAttentionSpan + 16;

// Floats beside those of a query, for what its attention keeps of it.
constexpr int kQueryRoom = 8;

// Queries (tokens times query heads) that a block of several tokens has at most.
constexpr int kAttentionRows = 48;

// One KV head of the query groups of `tokens` tokens that follow one another, against positions [begin, end) of their
// sequence; begin is a multiple of kAttentionSpan and end - begin <= kAttentionSpan. Token t stands at position + t and
// sees no further than `ahead` positions behind it, and no more than `window` up to its own where that is not 0. Each
// sees some of it, the last one its end. What no token sees is not read.
// A page holds, from `offset` bytes on, K as [head_dim][64 tokens] and then V as [64 tokens][padded_dim]; where two values
// lie together, K as [head_dim / 2, rounded up][64 tokens][2 elements] and V as [32][padded_dim][2 tokens]; in the same
// way four 8-bit codes, those of K with 128 added. Behind each of the two lie the tokens' scales then, [64] floats.
struct AttentionArgs {
  const float* q;  // [tokens][q_stride], in each row [query_heads][head_dim]
  int64_t q_stride;
  int32_t tokens, query_heads, head_dim;
  int32_t padded_dim;  // head_dim rounded up to 16
  const uint8_t* const* pages;
  int64_t offset;
  int32_t begin, end, position;
  int32_t window;  // 0: none
  int32_t ahead;   // 0: attention is causal
  float scale;
  float softcap;        // a scaled product x becomes softcap * tanh(x / softcap); 0: it stays
  const float* slopes;  // [query_heads], times which the distance is taken off a score; null: none
  // [query_heads][bias_stride], of each head what is added to the score of a key so many positions behind the query's,
  // or before it where that is negative; 16 more than there are positions can be read on both sides; null: nothing
  const float* bias;
  int64_t bias_stride;
  const uint8_t* next;  // what is likely to be read behind this, to be fetched; null: not known
  float* scratch;       // [tokens * query_heads][kScoreStride], and behind it as much as [head_dim + kQueryRoom]
  // [tokens][result_stride], in each row the largest score of each head [query_heads], its sum of
  // exp(score - largest) [query_heads], and its sum of exp(score - largest) * v [query_heads][padded_dim]
  float* results;
  int64_t result_stride;
};

// A kind of norm, by the name that descriptions have for it.
struct NormKernel {
  const char* name;
  // In place, too.
  void (*run)(const float* x, const float* weight, int64_t n, float eps, float* out) noexcept;
};

// What is done between the linears of an MLP, by the activation's name in descriptions.
struct ActivationKernels {
  const char* name;
  // gate[i] = activation(gate[i]) * up[i]
  void (*run)(float* gate, const float* up, int64_t n) noexcept;
  // The same with gate[i] at most limit, and u = up[i] within +-limit: activation(gate[i]), alpha on its exponent, times
  // u + shift. Null for most.
  void (*clamped)(float* gate, const float* up, int64_t n, float limit, float alpha, float shift) noexcept;
};

struct VectorKernels {
  const NormKernel* norms;  // behind the last is one without a name
  // Codes and scales of `n` inputs, zero up to `padded`; a unit is 32 or 64 inputs; code = round(x / scale), |code| <=
  // 127; surplus = -128 * sum of the codes.
  void (*quantize)(const float* x, int64_t n, int64_t padded, int32_t unit, int8_t* codes, float* scales,
                   int32_t* surplus) noexcept;
  // Rounds to bf16, nearest even, zero up to `padded`.
  void (*to_bf16)(const float* x, int64_t n, int64_t padded, uint16_t* out) noexcept;
  // Tensors of other types, at any address, to float32 (zero up to `padded`) and back (nearest even).
  void (*widen)(const void* x, FloatType type, int64_t n, int64_t padded, float* out) noexcept;
  void (*narrow)(const float* x, int64_t n, FloatType type, void* out) noexcept;
  // x[i] += y[i]
  void (*add)(float* x, const float* y, int64_t n) noexcept;
  // x[i] *= factor
  void (*scale)(float* x, float factor, int64_t n) noexcept;
  // x[i] = cap * tanh(x[i] / cap)
  void (*softcap)(float* x, float cap, int64_t n) noexcept;
  // x[i] += factor * y[i]
  void (*add_scaled)(float* x, const float* y, float factor, int64_t n) noexcept;
  // x[i] += factor * sum over j < rank of U[i][j] * inner[j] for n outputs. columns: U in panels of 16 outputs, each
  // [rank][16] of kF32, or of kBf16 [rank / 2, rounded up][16] words of 32 bits, U[i][2 k] below U[i][2 k + 1].
  void (*lift)(float* x, const void* columns, FloatType type, int32_t rank, const float* inner, float factor,
               int64_t n) noexcept;
  // By whether they are interleaved: rotates pairs (j, j + half), or (2 j, 2 j + 1), of each of `heads` heads by the
  // angles given as cosines and sines [half].
  void (*ropes[2])(float* x, int32_t heads, int32_t head_dim, int32_t half, const float* cosines,
                   const float* sines) noexcept;
  // x[i] within -limit and limit; NaN stays NaN.
  void (*clip)(float* x, int64_t n, float limit) noexcept;
  const ActivationKernels* activations;  // as `norms`
};

// What depends on the KV cache's element type.
struct KvKernels {
  int32_t element_bytes;
  int32_t together;     // values that lie together: AttentionArgs
  int32_t scale_bytes;  // of one token's K or V head
  // Writes one token's K or V head into a page.
  void (*store_k)(const float* k, int32_t head_dim, uint8_t* page, int32_t slot) noexcept;
  void (*store_v)(const float* v, int32_t head_dim, int32_t padded_dim, uint8_t* page, int32_t slot) noexcept;
  void (*attend)(const AttentionArgs& args) noexcept;
};

}  // namespace gossamer

#endif
