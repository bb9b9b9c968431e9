// The steps of pivoted Cholesky, a thread to each matrix; the loops over rows are in the kernels.
#include "pivoted_cholesky.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "matrix_checks.hpp"
#include "parallel.hpp"
#include "scratch.hpp"

namespace slimfast {
namespace {

// The first index of the largest element; a NaN counts as the largest, as it does in PyTorch's argmax.
i64 first_largest(const double* values, i64 n) {
    i64 best = 0;
    for (i64 i = 0; i < n; ++i) {
        if (std::isnan(values[i])) return i;
        if (values[i] > values[best]) best = i;
    }
    return best;
}

// Rows from which the columns picked so far no longer stay in cache: then every block of steps is taken out
// of the whole matrix by products, and a step subtracts only those of its own block.
constexpr i64 kBlockedRows = 384;

bool is_blocked(const CholeskyTask& task, const CholeskyKernels& kernel) {
    return task.a.rows >= kBlockedRows && task.rank > kernel.block;
}

// float64 elements of scratch: left, column, weights and the transposed factor; what is left, and a block.
i64 scratch_elements(const CholeskyTask& task, const CholeskyKernels& kernel) {
    const i64 n = task.a.rows;
    const i64 lazy = 2 * n + task.rank + task.rank * n;
    return is_blocked(task, kernel) ? lazy + kernel.rest_elements(n) + (n + kernel.block) * kernel.block
                                    : lazy;
}

template <class T>
void factorise(CholeskyTask& task, const CholeskyKernels& kernel, double* scratch) {
    const T* a = static_cast<const T*>(task.a.data);
    const i64 n = task.a.rows;
    double* left = scratch;
    double* column = left + n;
    double* weights = column + n;
    double* factor = weights + task.rank;
    double* rest = factor + task.rank * n;
    double* work = rest + kernel.rest_elements(n);
    const bool blocked = is_blocked(task, kernel);
    if (blocked) kernel.copy_lower(task.a, rest);
    for (i64 i = 0; i < n; ++i) left[i] = a[i * (task.a.row_stride + task.a.col_stride)];
    const double epsilon = std::numeric_limits<T>::epsilon();
    const double floor = static_cast<double>(n) * epsilon * left[first_largest(left, n)];
    i64 step = 0;
    for (; step < task.rank; ++step) {
        const i64 pick = first_largest(left, n);
        if (left[pick] <= floor) break;
        const double root = std::sqrt(left[pick]);
        const i64 taken_out = blocked ? step / kernel.block * kernel.block : 0;
        if (taken_out == step && step > 0 && blocked) {
            kernel.subtract_block(rest, factor + (step - kernel.block) * n, n, work);
        }
        if (blocked) {
            kernel.read_column(rest, n, pick, column);
        } else {
            for (i64 i = 0; i < n; ++i) column[i] = a[i * task.a.row_stride + pick * task.a.col_stride];
        }
        for (i64 j = taken_out; j < step; ++j) weights[j - taken_out] = factor[j * n + pick];
        kernel.subtract(column, factor + taken_out * n, weights, step - taken_out, n);
        double* out = factor + step * n;
        for (i64 i = 0; i < n; ++i) out[i] = column[i] / root;
        // What is picked is explained: exactly zero, so that it cannot be picked again.
        for (i64 j = 0; j < step; ++j) out[task.order[j]] = 0;
        kernel.reduce(left, out, n);
        task.order[step] = pick;
        for (i64 j = 0; j <= step; ++j) left[task.order[j]] = 0;
        double total = 0;
        for (i64 i = 0; i < n; ++i) total += left[i];
        static_cast<T*>(task.residual)[step] = static_cast<T>(total);
        T* rounded = static_cast<T*>(task.factor) + step * n;
        for (i64 i = 0; i < n; ++i) rounded[i] = static_cast<T>(out[i]);
    }
    task.picked = step;
}

}  // namespace

void pivoted_cholesky(std::vector<CholeskyTask>& tasks, int threads, Isa isa) {
    const CholeskyKernels& kernel = kernels(isa).cholesky;
    std::vector<double> costs;
    i64 elements = 0;
    for (const CholeskyTask& task : tasks) {
        const i64 n = task.a.rows;
        require_symmetric("pivoted_cholesky", task.a);
        require(0 <= task.rank && task.rank <= n, "pivoted_cholesky: expected a rank in 0..", n, ", got ",
                task.rank);
        costs.push_back(static_cast<double>(n) * task.rank * task.rank);
        elements = std::max(elements, scratch_elements(task, kernel));
    }
    const std::vector<i64> order = largest_first(costs);
    const std::vector<Scratch> scratch = scratch_per_thread(threads, 8 * elements);
    parallel_for(order.size(), threads, [&](i64 at, int rank) {
        CholeskyTask& task = tasks[order[at]];
        double* memory = reinterpret_cast<double*>(scratch[rank].get());
        if (task.a.dtype == Dtype::kFloat64) {
            factorise<double>(task, kernel, memory);
        } else {
            factorise<float>(task, kernel, memory);
        }
    });
}

}  // namespace slimfast
