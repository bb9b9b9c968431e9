// Greedy choice of rows: pivoted Cholesky of a group of positive semidefinite matrices.
#pragma once

#include <vector>

#include "kernels.hpp"

namespace slimfast {

// At most `rank` picks of a (n, n); arithmetic in float64 whatever a's dtype. Outputs: order (rank), the
// transposed factor (rank, n) and residual (rank) in a's dtype, of which the first `picked` are written.
struct CholeskyTask {
    MatrixView a;
    i64 rank;
    i64* order;
    void* factor;
    void* residual;
    i64 picked;
};

// Each step picks the largest variance left (ties: the smallest index) and stops where it is at most
// n epsilon(dtype) max(diag a). The result does not depend on `threads`.
void pivoted_cholesky(std::vector<CholeskyTask>& tasks, int threads, Isa isa);

}  // namespace slimfast
