// What this processor and its operating system can run. Compiled without ISA flags and without LTO.
#pragma once

#include <string>
#include <vector>

namespace gossamer {

// Tiers. Each builds on another one, down to kScalar, and what runs a tier runs those that it builds on; of two tiers
// of which neither builds on the other, as of two architectures, nothing is said. Of the tiers that a processor has,
// the last one listed is preferred.
//   kAvx2         AVX2, FMA, F16C, BMI2
//   kAvxVnni      kAvx2 and AVX-VNNI, which processors with AVX-512 may lack
//   kAvxVnniEvex  kAvx2 and VNNI of AVX-512 for the same code, for tests; in builds that ask for it
//   kAvx512       kAvx2 and F, BW, DQ, VL
//   kAvx512Vbmi2  kAvx512 and VNNI, VBMI, VBMI2
//   kAvx512Bf16   kAvx512Vbmi2 and BF16
//   kAmx          kAvx512Bf16 and the tiles of AMX, of 8 bits and of bf16
//   kAmxEmulated  kAvx512Vbmi2 and such tiles in loops, for tests; in builds that ask for it
enum class Isa : int { kScalar, kAvx2, kAvxVnniEvex, kAvxVnni, kAvx512, kAmxEmulated, kAvx512Vbmi2, kAvx512Bf16, kAmx };

const char* isa_name(Isa isa);

// Whether `isa` is `base` or builds on it.
bool builds_on(Isa isa, Isa base);

// The tiers that the processor has and whose registers the OS saves (XCR0), as listed. The first call asks the OS for
// leave to use tiles where the processor has some.
const std::vector<Isa>& detected_isas();
bool has_isa(Isa isa);

// The tier in use: GOSSAMER_ISA where set, otherwise the preferred one. Read once.
// Throws InvalidArgument when GOSSAMER_ISA names no tier or one that the processor lacks.
Isa active_isa();

// Threads that pay for bandwidth-bound work: physical cores that this process may run on, limited by the cgroup quota.
int usable_cores();

}  // namespace gossamer
