// All kernels of one instruction set, see isas.def.
#include "kernels.hpp"

#include "covariance-inl.hpp"
#include "eigvalsh-inl.hpp"
#include "pivoted_cholesky-inl.hpp"

namespace slimfast::SLIMFAST_ISA {

constexpr Kernels table{covariance_kernels, eigvalsh_kernels, cholesky_kernels};

extern const IsaKernels own;
const IsaKernels own{&table, nullptr};

}  // namespace slimfast::SLIMFAST_ISA
