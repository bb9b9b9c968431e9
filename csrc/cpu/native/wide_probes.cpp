// The probes of AVX-512 and what goes with it, asked of the machine.
#include "../probes.hpp"

#ifdef __x86_64__
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace slimfast {

#ifdef __x86_64__

namespace {

struct Cpuid {
    unsigned a = 0, b = 0, c = 0, d = 0;
};

// Zeros for a leaf that the processor does not know.
Cpuid extended_features(unsigned subleaf) {
    Cpuid features;
    __get_cpuid_count(7, subleaf, &features.a, &features.b, &features.c, &features.d);
    return features;
}

}  // namespace

bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool has_avx512_bf16() { return has_avx512() && (extended_features(1).a >> 5 & 1); }

// The tiles' state is large: Linux saves it only for a process that has asked.
bool has_amx() {
    constexpr unsigned bf16 = 1u << 22, tile = 1u << 24;
    if (!has_avx512() || (extended_features(0).d & (bf16 | tile)) != (bf16 | tile)) return false;
#ifdef __linux__
    constexpr long request_permission = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    return false;
#endif
}

#else

bool has_avx512() { return false; }
bool has_avx512_bf16() { return false; }
bool has_amx() { return false; }

#endif

}  // namespace slimfast
