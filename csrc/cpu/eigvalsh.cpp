#include "eigvalsh.hpp"

#include <algorithm>

#include "../common/check.hpp"
#include "../common/groups.hpp"
#include "parallel.hpp"
#include "scratch.hpp"

namespace slimfast {

using i64 = std::int64_t;

void eigvalsh(const std::vector<SymmetricMatrix>& matrices, int threads, Isa isa) {
    const EigvalshKernels& kernel = kernels(isa).eigvalsh;
    std::vector<double> costs;
    i64 bytes = 0;
    for (const SymmetricMatrix& matrix : matrices) {
        const MatrixView& a = matrix.a;
        require(a.rows > 0 && a.rows == a.cols, "eigvalsh: expected a square matrix, got ", a.rows, " x ",
                a.cols);
        require(a.dtype == Dtype::f32 || a.dtype == Dtype::f64, "eigvalsh: expected an f32 or f64 matrix");
        const double m = static_cast<double>(a.rows);
        costs.push_back(m * m * m * (a.dtype == Dtype::f64 ? 2 : 1));
        bytes = std::max(bytes, kernel.scratch_bytes(a.dtype, a.rows));
    }
    const std::vector<i64> order = largest_first(costs);
    const std::vector<Scratch> scratch = scratch_per_thread(threads, bytes);
    parallel_for(order.size(), threads,
                 [&](i64 at, int rank) { kernel.solve(matrices[order[at]], scratch[rank].get()); });
}

}  // namespace slimfast
