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
#ifdef SLIMFAST_BF16
namespace avx512_bf16 {
extern const Bf16Kernels bf16_kernels;
}
namespace amx {
extern const Bf16Kernels bf16_kernels;
}

namespace {

Kernels with(const Bf16Kernels& bf16) {
    Kernels all = avx512::table;
    all.covariance.bf16 = &bf16;
    return all;
}

}  // namespace
#endif

const Kernels& kernels(Isa isa) {
    switch (isa) {
#ifdef SLIMFAST_BF16
        case Isa::amx: {
            static const Kernels table = with(amx::bf16_kernels);
            return table;
        }
        case Isa::avx512_bf16: {
            static const Kernels table = with(avx512_bf16::bf16_kernels);
            return table;
        }
#endif
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
