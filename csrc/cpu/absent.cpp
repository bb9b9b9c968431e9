// In place of an instruction set that the compiler or the machine it compiles for does not know.
#include "kernels.hpp"

namespace slimfast::SLIMFAST_ISA {

extern const IsaKernels kOwn;
const IsaKernels kOwn{nullptr, nullptr};

}  // namespace slimfast::SLIMFAST_ISA
