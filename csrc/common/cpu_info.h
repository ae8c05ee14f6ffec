// What this processor and its operating system can run. Compiled without ISA flags and without LTO.
#pragma once

#include <string>
#include <vector>

namespace gossamer {

// Tiers in rising order; a processor of one tier runs every lower one.
//   kAvx2         AVX2, FMA, F16C, BMI2
//   kAvx512       + F, BW, DQ, VL
//   kAvx512Vbmi2  + VNNI, VBMI, VBMI2
enum class Isa : int { kScalar = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Vbmi2 = 3 };

inline constexpr int kIsaCount = 4;

const char* isa_name(Isa isa);

// The highest tier that the processor has and whose registers the OS saves (XCR0).
Isa detected_isa();

// True when the AVX-512 BF16 dot product may be used.
bool has_avx512_bf16();

// The tier in use: GOSSAMER_ISA where set, otherwise the detected one. Read once.
// Throws InvalidArgument when GOSSAMER_ISA names no tier or one that the processor lacks.
Isa active_isa();

// Threads that pay for bandwidth-bound work: physical cores that this process may run on, limited by the cgroup quota.
int usable_cores();

}  // namespace gossamer
