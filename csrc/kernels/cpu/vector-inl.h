// Norms, rotary and their kin, and the table of them, of activations and of attentions. Results do not depend on the
// number of tokens or threads.
#include "kernels/cpu/activations-inl.h"
#include "kernels/cpu/attend-inl.h"
#include "kernels/cpu/attend_codes-inl.h"
#include "kernels/cpu/lanes-inl.h"
#include "kernels/vector_kernels.h"

namespace gossamer {
namespace GOSSAMER_NS {
namespace {

void add(float* x, const float* y, int64_t n) noexcept {
  for (int64_t i = 0; i < n; ++i) x[i] += y[i];
}

void scale(float* x, float factor, int64_t n) noexcept {
  for (int64_t i = 0; i < n; ++i) x[i] *= factor;
}

void add_scaled(float* x, const float* y, float factor, int64_t n) noexcept {
  for (int64_t i = 0; i < n; ++i) x[i] += factor * y[i];
}

// U inner of panels that follow one another, rank by rank; see VectorKernels::lift. What an output gets must not depend
// on how many panels are taken together.
template <int kPanels>
GOSSAMER_INLINE void multiply_columns(const float* columns, int32_t rank, const float* inner, F16 (&sums)[kPanels]) {
  for (int32_t j = 0; j < rank; ++j)
    for (int k = 0; k < kPanels; ++k)
      sums[k] = multiply_add(load(columns + ((int64_t)k * rank + j) * kLanes), splat(inner[j]), sums[k]);
}
template <int kPanels>
GOSSAMER_INLINE void multiply_columns(const uint32_t* columns, int32_t rank, const float* inner, F16 (&sums)[kPanels]) {
  const int64_t panel = (rank + 1) / 2 * kLanes;
  int32_t j = 0;
  for (; j + 1 < rank; j += 2, columns += kLanes) {
    for (int k = 0; k < kPanels; ++k) {
      const I16 pairs = load_int(columns + k * panel);
      sums[k] = multiply_add(floats_of(pairs << 16), splat(inner[j]), sums[k]);
      sums[k] = multiply_add(floats_of(pairs & splat_int((int32_t)0xffff0000U)), splat(inner[j + 1]), sums[k]);
    }
  }
  if (j == rank) return;
  for (int k = 0; k < kPanels; ++k)
    sums[k] = multiply_add(floats_of(load_int(columns + k * panel) << 16), splat(inner[j]), sums[k]);
}

template <int kPanels, class Value>
GOSSAMER_INLINE void lift_panels(float* x, const Value* columns, int32_t rank, const float* inner, float factor) {
  F16 sums[kPanels] = {};
  multiply_columns(columns, rank, inner, sums);
  for (int k = 0; k < kPanels; ++k) store(x + k * kLanes, multiply_add(sums[k], splat(factor), load(x + k * kLanes)));
}

// panel: values of one.
template <class Value>
GOSSAMER_INLINE void lift_all(float* x, const Value* columns, int64_t panel, int32_t rank, const float* inner,
                              float factor, int64_t n) {
  constexpr int kTogether = 4;  // as many sums as hide how long an addition takes
  for (; n >= kTogether * kLanes; n -= kTogether * kLanes, x += kTogether * kLanes, columns += kTogether * panel)
    lift_panels<kTogether>(x, columns, rank, inner, factor);
  for (; n >= kLanes; n -= kLanes, x += kLanes, columns += panel) lift_panels<1>(x, columns, rank, inner, factor);
  if (n == 0) return;
  F16 sums[1] = {};
  multiply_columns(columns, rank, inner, sums);
  float products[kLanes];
  store(products, sums[0] * splat(factor));
  add(x, products, n);
}

void lift(float* x, const void* columns, FloatType type, int32_t rank, const float* inner, float factor,
          int64_t n) noexcept {
  if (type == FloatType::kBf16)
    lift_all(x, (const uint32_t*)columns, (int64_t)((rank + 1) / 2) * kLanes, rank, inner, factor, n);
  else
    lift_all(x, (const float*)columns, (int64_t)rank * kLanes, rank, inner, factor, n);
}

// x / sqrt(mean(x^2) + eps) * weight
void rms_norm(const float* x, const float* weight, int64_t n, float eps, float* out) noexcept {
  F16 squares = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const F16 v = load(x + i);
    squares += v * v;
  }
  if (i < n) {
    const F16 v = load_part(x + i, n - i);
    squares += v * v;
  }
  const float scale = 1.0F / sqrtf(sum_lanes(squares) / (float)n + eps);
  i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, load(x + i) * splat(scale) * load(weight + i));
  for (; i < n; ++i) out[i] = x[i] * scale * weight[i];
}

// The same of x - mean(x).
void layer_norm(const float* x, const float* weight, int64_t n, float eps, float* out) noexcept {
  F16 sums = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) sums += load(x + i);
  if (i < n) sums += load_part(x + i, n - i);
  const float mean = sum_lanes(sums) / (float)n;
  F16 squares = {};
  for (i = 0; i + kLanes <= n; i += kLanes) {
    const F16 v = load(x + i) - splat(mean);
    squares += v * v;
  }
  float rest[kLanes] = {};
  for (int64_t j = i; j < n; ++j) rest[j - i] = x[j] - mean;
  squares += load(rest) * load(rest);
  const float scale = 1.0F / sqrtf(sum_lanes(squares) / (float)n + eps);
  for (i = 0; i + kLanes <= n; i += kLanes)
    store(out + i, (load(x + i) - splat(mean)) * splat(scale) * load(weight + i));
  for (; i < n; ++i) out[i] = (x[i] - mean) * scale * weight[i];
}

constexpr NormKernel kNorms[] = {{"rms", rms_norm}, {"layer", layer_norm}, {}};

// A unit of kParts times 16 inputs.
template <int kParts>
GOSSAMER_INLINE void quantize_unit(const F16 (&parts)[kParts], int8_t* codes, float* scale_out, int32_t* surplus) {
  F16 largest = {};
  I16 bad = {};
  for (int j = 0; j < kParts; ++j) {
    largest = maximum(largest, maximum(parts[j], -parts[j]));
    bad |= is_nan(parts[j]);
  }
  const float magnitude = fold_lanes(largest, [](auto a, auto b) { return a > b ? a : b; });
  const float inverse = magnitude > 0 ? 127.0F / magnitude : 0.0F;
  // A magnitude too small for its inverse, or one that is not finite, has no codes; the scale tells the rest. NaN
  // poisons the unit instead of vanishing.
  const bool codable = inverse < INFINITY && magnitude < INFINITY;
  I16 total = {};
  for (int j = 0; j < kParts; ++j) {
    I16 code = {};
    if (codable) {
      const F16 scaled = round_even(parts[j] * splat(inverse));
      code = to_int(floats_of(bits_of(scaled) & ~is_nan(scaled)));
    }
    total += code;
    store_codes(code, codes + j * kLanes);
  }
  *scale_out = fold_lanes(bad, [](auto a, auto b) { return a | b; }) != 0 ? NAN : magnitude / 127.0F;
  *surplus = -128 * fold_lanes(total, [](auto a, auto b) { return a + b; });
}

template <int kParts>
GOSSAMER_INLINE void quantize_units(const float* x, int64_t n, int64_t padded, int8_t* codes, float* scales,
                                    int32_t* surplus) {
  constexpr int kUnit = kParts * kLanes;
  for (int64_t u = 0; u < padded / kUnit; ++u, x += kUnit, n -= kUnit, codes += kUnit) {
    F16 parts[kParts];
    for (int j = 0; j < kParts; ++j) {
      const int64_t left = n - j * kLanes;
      parts[j] = left >= kLanes ? load(x + j * kLanes) : load_part(x + j * kLanes, left > 0 ? left : 0);
    }
    quantize_unit<kParts>(parts, codes, scales + u, surplus + u);
  }
}

void quantize(const float* x, int64_t n, int64_t padded, int32_t unit, int8_t* codes, float* scales,
              int32_t* surplus) noexcept {
  if (unit == 32)
    quantize_units<2>(x, n, padded, codes, scales, surplus);
  else
    quantize_units<4>(x, n, padded, codes, scales, surplus);
}

void to_bf16(const float* x, int64_t n, int64_t padded, uint16_t* out) noexcept {
  for (int64_t i = 0; i < padded; ++i) {
    uint32_t bits = 0;
    if (i < n) memcpy(&bits, x + i, 4);
    const uint32_t nan = (bits & 0x7fffffffU) > 0x7f800000U ? 0x400000U : 0;
    const uint32_t rounded = nan != 0 ? bits | nan : bits + 0x7fffU + ((bits >> 16) & 1U);
    const uint16_t half = (uint16_t)(rounded >> 16);
    memcpy(out + i, &half, 2);
  }
}

void widen(const void* x, FloatType type, int64_t n, int64_t padded, float* out) noexcept {
  if (type == FloatType::kF32) {
    memcpy(out, x, sizeof(float) * (size_t)n);
  } else if (type == FloatType::kBf16) {
    for (int64_t i = 0; i < n; ++i) {
      uint16_t half;
      memcpy(&half, (const char*)x + 2 * i, 2);
      const uint32_t bits = (uint32_t)half << 16;
      memcpy(out + i, &bits, 4);
    }
  } else {
    const uint16_t* halves = (const uint16_t*)x;
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store(out + i, load_f16(halves + i));
    if (i < n) {
      uint16_t rest[kLanes] = {};
      memcpy(rest, halves + i, 2 * (size_t)(n - i));
      store_part(out + i, load_f16(rest), n - i);
    }
  }
  if (padded > n) memset(out + n, 0, sizeof(float) * (size_t)(padded - n));
}

void narrow(const float* x, int64_t n, FloatType type, void* out) noexcept {
  if (type == FloatType::kF32) {
    memcpy(out, x, sizeof(float) * (size_t)n);
  } else if (type == FloatType::kBf16) {
    to_bf16(x, n, n, (uint16_t*)out);
  } else {
    uint16_t* halves = (uint16_t*)out;
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store_f16(load(x + i), halves + i);
    if (i < n) {
      uint16_t rest[kLanes];
      store_f16(load_part(x + i, n - i), rest);
      memcpy(halves + i, rest, 2 * (size_t)(n - i));
    }
  }
}

void rope(float* x, int32_t heads, int32_t head_dim, int32_t half, const float* cosines, const float* sines) noexcept {
  for (int32_t h = 0; h < heads; ++h, x += head_dim) {
    for (int32_t j = 0; j < half; ++j) {
      const float a = x[j];
      const float b = x[j + half];
      x[j] = a * cosines[j] - b * sines[j];
      x[j + half] = b * cosines[j] + a * sines[j];
    }
  }
}

void rope_interleaved(float* x, int32_t heads, int32_t head_dim, int32_t half, const float* cosines,
                      const float* sines) noexcept {
  for (int32_t h = 0; h < heads; ++h, x += head_dim) {
    for (int32_t j = 0; j < half; ++j) {
      const float a = x[2 * j];
      const float b = x[2 * j + 1];
      x[2 * j] = a * cosines[j] - b * sines[j];
      x[2 * j + 1] = b * cosines[j] + a * sines[j];
    }
  }
}

void clip(float* x, int64_t n, float limit) noexcept {
  for (int64_t i = 0; i < n; ++i) {
    const float below = x[i] > limit ? limit : x[i];
    x[i] = below < -limit ? -limit : below;
  }
}

}  // namespace

extern const VectorKernels kVectorKernels;
const VectorKernels kVectorKernels = {
    kNorms, quantize,     to_bf16, widen, narrow, add, scale, softcap, add_scaled, lift, {rope, rope_interleaved},
    clip,   kActivations,
};

extern const KvKernels kKvKernels[kKvTypeCount];
const KvKernels kKvKernels[kKvTypeCount] = {
    // by KvType
    kv_kernels<KvF32>(),
    kv_kernels<KvF16>(),
    kv_kernels<KvBf16>(),
    code_kernels(),
};

}  // namespace GOSSAMER_NS
}  // namespace gossamer
