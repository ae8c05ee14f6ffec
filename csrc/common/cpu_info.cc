#include "common/cpu_info.h"

#include <sched.h>
#if defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <set>
#include <utility>

#include "common/error.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace gossamer {
namespace {

struct Tier {
  const char* name;
  Isa base;  // what it builds on; itself for the lowest
};

// By Isa.
constexpr Tier kTiers[] = {
    {"scalar", Isa::kScalar},       {"avx2", Isa::kScalar},
    {"avx_vnni_evex", Isa::kAvx2},  {"avx_vnni", Isa::kAvx2},
    {"avx512", Isa::kAvx2},         {"amx_emulated", Isa::kAvx512Vbmi2},
    {"avx512_vbmi2", Isa::kAvx512}, {"avx512_bf16", Isa::kAvx512Vbmi2},
    {"amx", Isa::kAvx512Bf16},
};
static_assert(std::size(kTiers) == static_cast<std::size_t>(Isa::kAmx) + 1);

struct Detected {
  std::vector<Isa> isas = {Isa::kScalar};
  std::string no_tiles;  // why the OS does not let us use the tiles that the processor has
};

constexpr const Tier& tier(Isa isa) { return kTiers[static_cast<int>(isa)]; }

#if defined(__x86_64__)
std::uint64_t read_xcr0() {
  std::uint32_t low = 0;
  std::uint32_t high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<std::uint64_t>(high) << 32) | low;
}

// Leave for this process to use tiles, whose registers the OS otherwise refuses to save; why not, where it is denied.
std::string ask_for_tiles(std::uint64_t xcr0) {
  if ((xcr0 & 0x60000) != 0x60000) return "the operating system does not save the registers of tiles";
  constexpr int kRequest = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int kTileData = 18;     // XFEATURE_XTILEDATA
  if (syscall(SYS_arch_prctl, kRequest, kTileData) == 0) return "";
  return concat("the operating system refuses tiles to this process: ", std::strerror(errno));
}

Detected detect() {
  Detected result;
  std::vector<Isa>& found = result.isas;
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  const auto has = [](unsigned reg, int bit) { return ((reg >> bit) & 1U) != 0; };
  if (!__get_cpuid(1, &a, &b, &c, &d)) return result;
  const bool base = has(c, 12) /* FMA */ && has(c, 23) /* POPCNT */ && has(c, 27) /* OSXSAVE */ &&
                    has(c, 28) /* AVX */ && has(c, 29) /* F16C */;
  if (!base) return result;
  const std::uint64_t xcr0 = read_xcr0();
  if ((xcr0 & 0x6) != 0x6) return result;  // XMM and YMM state
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return result;
  if (!(has(b, 3) /* BMI1 */ && has(b, 5) /* AVX2 */ && has(b, 8) /* BMI2 */)) return result;
  found.push_back(Isa::kAvx2);
  unsigned more = 0;
  unsigned unused[3] = {};
  if (!__get_cpuid_count(7, 1, &more, &unused[0], &unused[1], &unused[2])) more = 0;
#if GOSSAMER_EVEX_VNNI
  if ((xcr0 & 0xe6) == 0xe6 && has(b, 16) /* F */ && has(b, 31) /* VL */ && has(c, 11) /* VNNI */)
    found.push_back(Isa::kAvxVnniEvex);
#endif
  if (has(more, 4) /* AVX-VNNI */) found.push_back(Isa::kAvxVnni);
  if ((xcr0 & 0xe6) != 0xe6) return result;  // + opmask and ZMM state
  if (!(has(b, 16) /* F */ && has(b, 17) /* DQ */ && has(b, 30) /* BW */ && has(b, 31) /* VL */)) return result;
  found.push_back(Isa::kAvx512);
  if (!(has(c, 1) /* VBMI */ && has(c, 6) /* VBMI2 */ && has(c, 11) /* VNNI */)) return result;
#if GOSSAMER_EMULATED_TILES
  found.push_back(Isa::kAmxEmulated);
#endif
  found.push_back(Isa::kAvx512Vbmi2);
  const bool tiles = has(d, 24) /* AMX-TILE */ && has(d, 25) /* AMX-INT8 */ && has(d, 22) /* AMX-BF16 */;
  if (has(more, 5) /* AVX512_BF16 */) {
    found.push_back(Isa::kAvx512Bf16);
    if (tiles) result.no_tiles = ask_for_tiles(xcr0);
    if (tiles && result.no_tiles.empty()) found.push_back(Isa::kAmx);
  }
  return result;
}
#else
Detected detect() { return {}; }
#endif

const Detected& detected() {
  static const Detected found = detect();
  return found;
}

// CPUs' worth of time that one control group grants; a huge number where it has no quota.
double quota_of(const std::string& folder) {
  std::ifstream v2(folder + "/cpu.max");
  std::string quota;
  double period = 0;
  if (v2 >> quota >> period && quota != "max" && period > 0) return std::strtod(quota.c_str(), nullptr) / period;
  std::ifstream quota_v1(folder + "/cpu.cfs_quota_us");
  std::ifstream period_v1(folder + "/cpu.cfs_period_us");
  double value = 0;
  if (quota_v1 >> value && period_v1 >> period && value > 0 && period > 0) return value / period;
  return HUGE_VAL;
}

// The least that our control group and those above it grant. In a container our path may not be visible; the mounted
// root is then our own group.
double cgroup_cpus() {
  double least = std::min(quota_of("/sys/fs/cgroup"), quota_of("/sys/fs/cgroup/cpu"));
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // hierarchy:controllers:path
    const std::size_t first = line.find(':');
    const std::size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool v2 = controllers.empty();
    if (!v2 && ("," + controllers + ",").find(",cpu,") == std::string::npos) continue;
    const std::string root = v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/cpu";
    for (std::string path = line.substr(second + 1); path.size() > 1; path.resize(path.find_last_of('/')))
      least = std::min(least, quota_of(root + path));
  }
  return least;
}

// Distinct (package, core) pairs among the CPUs of our affinity mask.
int physical_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  std::set<std::pair<int, int>> cores;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &set)) continue;
    const std::string base = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
    int package = 0;
    int core = cpu;
    std::ifstream(base + "physical_package_id") >> package;
    std::ifstream file(base + "core_id");
    if (!(file >> core)) core = cpu;
    cores.emplace(package, core);
  }
  return std::max(1, static_cast<int>(cores.size()));
}

}  // namespace

const char* isa_name(Isa isa) { return tier(isa).name; }

bool builds_on(Isa isa, Isa base) {
  while (isa != base && tier(isa).base != isa) isa = tier(isa).base;
  return isa == base;
}

const std::vector<Isa>& detected_isas() { return detected().isas; }

bool has_isa(Isa isa) {
  const std::vector<Isa>& isas = detected_isas();
  return std::find(isas.begin(), isas.end(), isa) != isas.end();
}

Isa active_isa() {
  static const Isa chosen = [] {
    const char* set = std::getenv("GOSSAMER_ISA");
    const std::string wish = set == nullptr ? "" : set;
    if (wish.empty()) return detected_isas().back();
    for (const Isa isa : detected_isas())
      if (wish == isa_name(isa)) return isa;
    require(wish != isa_name(Isa::kAmx) || detected().no_tiles.empty(), "GOSSAMER_ISA=", wish,
            " cannot run here: ", detected().no_tiles);
    std::string names;
    for (const Isa isa : detected_isas()) names += concat(names.empty() ? "" : ", ", isa_name(isa));
    throw InvalidArgument(concat("GOSSAMER_ISA=", wish, " cannot run here; what can is ", names));
  }();
  return chosen;
}

int usable_cores() {
  const double quota = cgroup_cpus();
  const int cores = physical_cores();
  return quota < cores ? std::max(1, static_cast<int>(std::floor(quota))) : cores;
}

}  // namespace gossamer
