#include "isa.hpp"

#include <cstdlib>

#include "../common/check.hpp"

namespace slimfast {
namespace {

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
