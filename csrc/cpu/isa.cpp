#include "isa.hpp"

#include <cstdlib>

#if defined(SLIMFAST_BF16) && !defined(SLIMFAST_EMULATED)
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#include "../common/check.hpp"

namespace slimfast {
namespace {

#ifdef SLIMFAST_BF16
#ifdef SLIMFAST_EMULATED

bool has_avx512_bf16() { return true; }
bool has_amx() { return true; }

#else

struct Cpuid {
    unsigned a = 0, b = 0, c = 0, d = 0;
};

// Nothing for a leaf that the processor does not know.
Cpuid extended_features(unsigned subleaf) {
    Cpuid found;
    __get_cpuid_count(7, subleaf, &found.a, &found.b, &found.c, &found.d);
    return found;
}

bool has_avx512_bf16() { return extended_features(1).a >> 5 & 1; }

// The tiles' state is large: Linux saves it only for a process that has asked.
bool has_amx() {
    constexpr unsigned bf16 = 1u << 22, tile = 1u << 24;
    if ((extended_features(0).d & (bf16 | tile)) != (bf16 | tile)) return false;
#ifdef __linux__
    constexpr long request_permission = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    return false;
#endif
}

#endif
#endif

std::vector<Isa> detect() {
    std::vector<Isa> found{Isa::baseline};
#ifdef SLIMFAST_X86
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (avx2) found.push_back(Isa::avx2);
#endif
#if defined(SLIMFAST_EMULATED) && defined(SLIMFAST_X86)
    // Lowered to AVX2.
    const bool avx512 = avx2;
#elif defined(SLIMFAST_EMULATED)
    const bool avx512 = true;
#elif defined(SLIMFAST_X86)
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
    const bool avx512 = false;
#endif
    if (avx512) found.push_back(Isa::avx512);
#ifdef SLIMFAST_BF16
    if (avx512 && has_avx512_bf16()) found.push_back(Isa::avx512_bf16);
    if (avx512 && has_amx()) found.push_back(Isa::amx);
#endif
    return found;
}

std::string joined_names() {
    std::string all;
    for (Isa isa : available_isas()) all += (all.empty() ? "" : ", ") + std::string(name(isa));
    return all;
}

Isa lookup(const std::string& wanted, const char* source) {
    for (Isa isa : available_isas()) {
        if (wanted == name(isa)) return isa;
    }
    require(false, source, ": expected one of ", joined_names(), " on this machine, got '", wanted, "'");
    return Isa::baseline;
}

}  // namespace

const char* name(Isa isa) {
    switch (isa) {
        case Isa::amx:
            return "amx";
        case Isa::avx512_bf16:
            return "avx512_bf16";
        case Isa::avx512:
            return "avx512";
        case Isa::avx2:
            return "avx2";
        default:
            return "baseline";
    }
}

const std::vector<Isa>& available_isas() {
    static const std::vector<Isa> found = detect();
    return found;
}

Isa default_isa() {
    static const std::string forced = [] {
        const char* value = std::getenv("SLIMFAST_ISA");
        return std::string(value ? value : "");
    }();
    return forced.empty() ? available_isas().back() : lookup(forced, "SLIMFAST_ISA");
}

Isa find_isa(const std::string& wanted) { return wanted.empty() ? default_isa() : lookup(wanted, "isa"); }

}  // namespace slimfast
