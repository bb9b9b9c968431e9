// Covariances of a group of layers: centred Gram matrices, scaled.
#pragma once

#include <vector>

#include "kernels.hpp"

namespace slimfast {

// out (m, m) contiguous in `result` (f32 or f64), m = n (by_rows) or d: Xc Xc^T / max(d - 1, 1) or
// Xc^T Xc / max(d - 1, 1), where Xc is x (n, d) with every row centred on its own mean. Both triangles. By
// rows x may be several members (n, d_j) side by side, each centred on its own, with d their sum.
struct CovarianceLayer {
    std::vector<MatrixView> members;
    bool by_rows;
    Dtype result;
    void* out;
};

// traces[i]: the trace of layer i's matrix, from the centred values in float64. The result does not depend on
// `threads`.
void covariance(const std::vector<CovarianceLayer>& layers, double* traces, int threads, Isa isa);

}  // namespace slimfast
