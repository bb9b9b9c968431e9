// All kernels of one instruction set, see isas.def.
#include "kernels.hpp"

#include "covariance-inl.hpp"
#include "eigvalsh-inl.hpp"
#include "pivoted_cholesky-inl.hpp"

namespace slimfast::SLIMFAST_ISA {

constexpr Kernels kTable{kCovarianceKernels, kEigvalshKernels, kCholeskyKernels};

extern const IsaKernels kOwn;
const IsaKernels kOwn{&kTable, nullptr};

}  // namespace slimfast::SLIMFAST_ISA
