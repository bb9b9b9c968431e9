// The probes of AVX-512 and what goes with it where both are emulated: by AVX2, or elsewhere by the baseline.
#include "../probes.hpp"

namespace slimfast {

bool has_avx512() {
#ifdef __x86_64__
    return has_avx2();
#else
    return true;
#endif
}

bool has_avx512_bf16() { return has_avx512(); }
bool has_amx() { return has_avx512(); }

}  // namespace slimfast
