// Each system is solved by one thread, the largest first.
#include "cholesky_solve.hpp"

#include <algorithm>

#include "matrix_checks.hpp"
#include "parallel.hpp"
#include "scratch.hpp"

namespace slimfast {

void cholesky_solve(std::vector<DampedSystem>& systems, int threads, Isa isa) {
    const SolveKernels& kernel = kernels(isa).solve;
    std::vector<double> costs;
    i64 bytes = 0;
    for (const DampedSystem& system : systems) {
        require_symmetric("cholesky_solve", system.a);
        require(system.b.rows == system.a.rows && system.b.cols > 0 && is_float32_or_float64(system.b.dtype),
                "cholesky_solve: expected a right-hand side of ", system.a.rows, " rows, got ", system.b.rows,
                " x ", system.b.cols);
        const double m = static_cast<double>(system.a.rows), k = static_cast<double>(system.b.cols);
        costs.push_back(m * m * (m / 3 + 2 * k));
        bytes = std::max(bytes, kernel.scratch_bytes(system.a.rows, system.b.cols));
    }
    const i64 count = static_cast<i64>(systems.size());
    const std::vector<Scratch> scratch =
        scratch_per_thread(static_cast<int>(std::min<i64>(threads, count)), bytes);
    const std::vector<i64> order = largest_first(costs);
    parallel_for(count, threads,
                 [&](i64 at, int rank) { kernel.solve(systems[order[at]], scratch[rank].get()); });
}

}  // namespace slimfast
