// The probes of the instruction sets that are compiled for themselves in every module.
#include "probes.hpp"

namespace slimfast {

bool has_baseline() { return true; }

bool has_avx2() {
#ifdef __x86_64__
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return false;
#endif
}

}  // namespace slimfast
