// Compiled once per instruction set, see CMakeLists.txt: the table of that set's kernels.
#include "kernels.hpp"

#include "covariance-inl.hpp"
#include "eigvalsh-inl.hpp"
#include "pivoted_cholesky-inl.hpp"

namespace slimfast::SLIMFAST_ISA {

extern const Kernels table;
const Kernels table{covariance_kernels, eigvalsh_kernels, cholesky_kernels};

}  // namespace slimfast::SLIMFAST_ISA
