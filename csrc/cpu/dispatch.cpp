#include "kernels.hpp"

namespace slimfast {

namespace baseline {
extern const Kernels table;
}
#ifdef SLIMFAST_X86
namespace avx2 {
extern const Kernels table;
}
#endif
#if defined(SLIMFAST_X86) || defined(SLIMFAST_EMULATED)
namespace avx512 {
extern const Kernels table;
}
#endif

const Kernels& kernels(Isa isa) {
    switch (isa) {
#if defined(SLIMFAST_X86) || defined(SLIMFAST_EMULATED)
        case Isa::avx512:
            return avx512::table;
#endif
#ifdef SLIMFAST_X86
        case Isa::avx2:
            return avx2::table;
#endif
        default:
            return baseline::table;
    }
}

}  // namespace slimfast
