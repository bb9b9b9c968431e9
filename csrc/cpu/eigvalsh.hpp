// Eigenvalues of a group of symmetric matrices.
#pragma once

#include <vector>

#include "kernels.hpp"

namespace slimfast {

// matrices[i].values (m_i): the eigenvalues of matrices[i].a, ascending, in its dtype; only the lower
// triangle is read; NaN throughout for a matrix that is not finite. The result does not depend on `threads`.
void eigvalsh(const std::vector<SymmetricMatrix>& matrices, int threads, Isa isa);

}  // namespace slimfast
