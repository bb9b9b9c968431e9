// Damped symmetric positive definite systems, solved by Cholesky factors in float64.
#pragma once

#include <vector>

#include "kernels.hpp"

namespace slimfast {

// Solves every system; `failure` of each is 0 or the order of the first leading minor that is not positive,
// and its solution is then NaN. The result does not depend on `threads`.
void cholesky_solve(std::vector<DampedSystem>& systems, int threads, Isa isa);

}  // namespace slimfast
