// Which threads solve which matrices, and in what order.
#include "eigvalsh.hpp"

#include <algorithm>
#include <thread>

#include "matrix_checks.hpp"
#include "parallel.hpp"
#include "scratch.hpp"

namespace slimfast {
namespace {

// What a team loses to waiting for each other, as a share of its threads' time; an estimate.
constexpr double kTeamEfficiency = 0.8;

void wait_at(void* barrier, int threads) { static_cast<Barrier*>(barrier)->wait(threads); }

void yield() { std::this_thread::yield(); }

ThreadTeam alone() { return {0, 1, nullptr, wait_at, yield}; }

// How many of the largest matrices are best solved by all threads together, one after another, before the
// rest is dealt out: the number that ends soonest. `costs` fall; the first `shareable` of them can be shared.
i64 count_together(const std::vector<double>& costs, i64 shareable, int threads) {
    if (threads <= 1) return 0;
    i64 best = 0;
    double least = 0, before = 0;
    for (i64 together = 0; together <= shareable; ++together) {
        std::vector<double> busy(threads, 0.0);
        for (i64 i = together; i < static_cast<i64>(costs.size()); ++i) {
            *std::min_element(busy.begin(), busy.end()) += costs[i];
        }
        const double time = before + *std::max_element(busy.begin(), busy.end());
        if (together == 0 || time < least) {
            least = time;
            best = together;
        }
        // What is left gains nothing more.
        if (together < shareable) before += costs[together] / (threads * kTeamEfficiency);
        if (before > least) break;
    }
    return best;
}

// The first `count` matrices of `order`, each by all threads together.
void solve_together(const std::vector<SymmetricMatrix>& matrices, const std::vector<i64>& order, i64 count,
                    const EigvalshKernels& kernel, int threads) {
    for (i64 i = 0; i < count; ++i) {
        const SymmetricMatrix& matrix = matrices[order[i]];
        const Scratch scratch = allocate_scratch(kernel.scratch_bytes(matrix.a.dtype, matrix.a.rows));
        Barrier barrier;
        parallel_run(threads, [&](int rank, int size) {
            kernel.solve(matrix, scratch.get(), {rank, size, &barrier, wait_at, yield});
        });
    }
}

// The matrices of `order` from `begin` on, one by one, or small ones of a size several at a time; equal costs
// are equal sizes.
void solve_alone(const std::vector<SymmetricMatrix>& matrices, const std::vector<i64>& order, i64 begin,
                 const EigvalshKernels& kernel, int threads) {
    struct Item {
        i64 first, count, many;
    };
    std::vector<Item> items;
    std::vector<const SymmetricMatrix*> rest;
    i64 bytes = 0;
    for (i64 i = begin; i < static_cast<i64>(order.size()); ++i) {
        const SymmetricMatrix& matrix = matrices[order[i]];
        const i64 many = kernel.many(matrix.a.dtype, matrix.a.rows);
        const SymmetricMatrix* before = rest.empty() ? nullptr : rest.back();
        const bool joins = before && before->a.rows == matrix.a.rows && before->a.dtype == matrix.a.dtype &&
                           items.back().count < many;
        if (!joins) items.push_back({static_cast<i64>(rest.size()), 0, many});
        ++items.back().count;
        rest.push_back(&matrix);
        bytes = std::max(bytes, kernel.scratch_bytes(matrix.a.dtype, matrix.a.rows));
    }
    const i64 count = static_cast<i64>(items.size());
    const std::vector<Scratch> scratch =
        scratch_per_thread(static_cast<int>(std::min<i64>(threads, count)), bytes);
    parallel_for(count, threads, [&](i64 at, int rank) {
        const Item& item = items[at];
        if (item.many > 0) {
            kernel.solve_many(rest.data() + item.first, item.count, scratch[rank].get());
        } else {
            kernel.solve(*rest[item.first], scratch[rank].get(), alone());
        }
    });
}

}  // namespace

void eigvalsh(const std::vector<SymmetricMatrix>& matrices, int threads, Isa isa) {
    const EigvalshKernels& kernel = kernels(isa).eigvalsh;
    std::vector<double> costs;
    for (const SymmetricMatrix& matrix : matrices) {
        require_symmetric("eigvalsh", matrix.a);
        const double m = static_cast<double>(matrix.a.rows);
        costs.push_back(m * m * m * (matrix.a.dtype == Dtype::kFloat64 ? 2 : 1));
    }
    const std::vector<i64> order = largest_first(costs);
    std::vector<double> falling;
    i64 shareable = 0;
    for (i64 at : order) {
        const MatrixView& a = matrices[at].a;
        falling.push_back(costs[at]);
        if (shareable + 1 == static_cast<i64>(falling.size()) && kernel.shareable(a.dtype, a.rows))
            ++shareable;
    }
    const i64 together = count_together(falling, shareable, threads);
    solve_together(matrices, order, together, kernel, threads);
    solve_alone(matrices, order, together, kernel, threads);
}

}  // namespace slimfast
