// The nonlinearities of MLPs, the loops over them, and their table.
#pragma once
#include "kernels/cpu/lanes-inl.h"
#include "kernels/vector_kernels.h"

namespace gossamer {
namespace GOSSAMER_NS {
namespace {

// x / (1 + e^-x)
struct Silu {
  static GOSSAMER_INLINE F16 of(const F16& x) { return x / (splat(1.0F) + exponential(-x)); }
};

// x times the normal distribution's share below x (Hendrycks and Gimpel 2016). The complementary error function is the
// polynomial in 1 / (1 + p z) of Abramowitz and Stegun, 7.1.26, within 1.5e-7.
struct Gelu {
  static GOSSAMER_INLINE F16 of(const F16& x) {
    const F16 z = maximum(x, -x) * splat(0.70710678F);
    const F16 t = splat(1.0F) / (splat(1.0F) + splat(0.3275911F) * z);
    F16 p = splat(1.061405429F);
    p = p * t + splat(-1.453152027F);
    p = p * t + splat(1.421413741F);
    p = p * t + splat(-0.284496736F);
    p = p * t + splat(0.254829592F);
    const F16 outside = splat(0.5F) * p * t * exponential(-z * z);
    const I16 negative = bits_of(x) >> 31;
    const I16 share = (bits_of(outside) & negative) | (bits_of(splat(1.0F) - outside) & ~negative);
    return x * floats_of(share);
  }
};

// x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, as x / (1 + e^-2u)
struct GeluTanh {
  static GOSSAMER_INLINE F16 of(const F16& x) {
    const F16 u = x * (splat(0.79788456F) + splat(0.035677408F) * x * x);
    return x / (splat(1.0F) + exponential(splat(-2.0F) * u));
  }
};

// Zero comes first in what is compared, so that NaN stays.
struct Relu {
  static GOSSAMER_INLINE F16 of(const F16& x) { return maximum(F16{}, x); }
};

struct Relu2 {
  static GOSSAMER_INLINE F16 of(const F16& x) {
    const F16 positive = maximum(F16{}, x);
    return positive * positive;
  }
};

template <class A>
void activate(float* gate, const float* up, int64_t n) noexcept {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(gate + i, A::of(load(gate + i)) * load(up + i));
  if (i < n) store_part(gate + i, A::of(load_part(gate + i, n - i)) * load_part(up + i, n - i), n - i);
}

// g / (1 + e^(-alpha g)) (u + shift)
struct Clamp {
  float limit, alpha, shift;

  GOSSAMER_INLINE F16 of(const F16& gate, const F16& up) const {
    const F16 least = splat(-limit);  // comes first, so that NaN stays
    const F16 g = -maximum(least, -gate);
    const F16 u = -maximum(least, -maximum(least, up));
    return g / (splat(1.0F) + exponential(-g * splat(alpha))) * (u + splat(shift));
  }
};

void clamped(float* gate, const float* up, int64_t n, float limit, float alpha, float shift) noexcept {
  const Clamp clamp = {limit, alpha, shift};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(gate + i, clamp.of(load(gate + i), load(up + i)));
  if (i < n) store_part(gate + i, clamp.of(load_part(gate + i, n - i), load_part(up + i, n - i)), n - i);
}

template <class A>
constexpr ActivationKernels activation(const char* name, decltype(ActivationKernels::clamped) clamped = nullptr) {
  return {name, activate<A>, clamped};
}

constexpr ActivationKernels kActivations[] = {activation<Silu>("silu", clamped), activation<Gelu>("gelu"),
                                              activation<GeluTanh>("gelu_tanh"), activation<Relu>("relu"),
                                              activation<Relu2>("relu2"),        {}};

void softcap(float* x, float cap, int64_t n) noexcept {
  const auto of = [cap](const F16& v) { return splat(cap) * hyperbolic_tangent(v / splat(cap)); };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(x + i, of(load(x + i)));
  if (i < n) store_part(x + i, of(load_part(x + i, n - i)), n - i);
}

}  // namespace
}  // namespace GOSSAMER_NS
}  // namespace gossamer
