// All kernels of one instruction set, see isas.def.
#include "kernels.hpp"

#include "cholesky_solve-inl.hpp"
#include "covariance-inl.hpp"
#include "eigvalsh-inl.hpp"
#include "moments-inl.hpp"
#include "pivoted_cholesky-inl.hpp"

namespace slimfast::SLIMFAST_ISA {

constexpr Kernels kTable{kCovarianceKernels, kMomentKernels, kEigvalshKernels, kCholeskyKernels,
                         kSolveKernels};

extern const IsaKernels kOwn;
const IsaKernels kOwn{&kTable, nullptr};

}  // namespace slimfast::SLIMFAST_ISA
