// Pivoted Cholesky, a block or the blocks of a cluster to each matrix.
#include "pivoted_cholesky.hpp"
#include "reduce.cuh"

namespace slimfast::cuda {
namespace {

// Traits.

constexpr unsigned kThreads = 512;
constexpr int kWarps = kThreads / 32;
// Entries of the picked row of the factor that are in shared memory at a time.
constexpr int kStaged = 128;
// In place of the variance left to a row that was picked.
constexpr double kPicked = -1.0;

struct Candidate {
    double left;
    i64 row;
    double sum;  // of the variance left to all rows seen; not finite where one is not
};

// A row of this variance: below zero is rounding, and what is no number is never the best.
__device__ inline Candidate candidate(double variance, i64 row) {
    const bool positive = variance > 0.0;
    return {positive ? variance : 0.0, row, positive ? variance : 0.0 * variance};
}

// The larger variance, and of equal ones the smaller index; so the order of the comparisons does not matter.
__device__ inline Candidate better(const Candidate& a, const Candidate& b) {
    const bool first = a.left > b.left || (a.left == b.left && a.row < b.row);
    return {first ? a.left : b.left, first ? a.row : b.row, a.sum + b.sum};
}

struct Shared {
    // Two sets in turn: who is a step ahead must not write what others still read.
    Candidate warps[2][kWarps];
    Candidate block[2];
    double pick[kStaged];
};

// A matrix and where its results go, see PivotField.
template <class T>
struct PivotTask {
    const T* matrix;
    i64 size, rank, row_stride, column_stride;
    double *left, *columns;
    T *factor, *residual;
    i64 *order, *picked;

    __device__ explicit PivotTask(const i64* layer)
        : matrix(reinterpret_cast<const T*>(layer[kPivotMatrix])),
          size(layer[kPivotSize]),
          rank(layer[kPivotRank]),
          row_stride(layer[kPivotRowStride]),
          column_stride(layer[kPivotColumnStride]),
          left(reinterpret_cast<double*>(layer[kPivotLeft])),
          columns(reinterpret_cast<double*>(layer[kPivotColumns])),
          factor(reinterpret_cast<T*>(layer[kPivotFactor])),
          residual(reinterpret_cast<T*>(layer[kPivotResidual])),
          order(reinterpret_cast<i64*>(layer[kPivotOrder])),
          picked(reinterpret_cast<i64*>(layer[kPivotPicked])) {}

    // What no row is better than.
    __device__ Candidate none() const { return {-1.0, size, 0.0}; }
};

// The rows of a matrix that a thread owns: first, first + stride, ... of all rows of its `blocks` blocks.
struct RowShare {
    unsigned blocks;
    i64 first, stride;
    bool leader;

    __device__ explicit RowShare(unsigned blocks)
        : blocks(blocks),
          first((blocks == 1 ? 0 : cluster_rank()) * kThreads + threadIdx.x),
          stride(i64{blocks} * kThreads),
          leader(threadIdx.x == 0 && (blocks == 1 || cluster_rank() == 0)) {}
};

// The best row of the matrix's blocks and the sum over all rows, known to every thread.
__device__ Candidate best_row(Candidate mine, Shared& shared, unsigned blocks, int step) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) {
        const Candidate other{__shfl_xor_sync(kAllLanes, mine.left, mask),
                              __shfl_xor_sync(kAllLanes, mine.row, mask),
                              __shfl_xor_sync(kAllLanes, mine.sum, mask)};
        mine = better(mine, other);
    }
    Candidate* warps = shared.warps[step % 2];
    if (lane_index() == 0) warps[warp_index()] = mine;
    __syncthreads();
    Candidate best = warps[0];
    for (int w = 1; w < kWarps; ++w) best = better(best, warps[w]);
    if (blocks == 1) return best;
    Candidate& published = shared.block[step % 2];
    if (threadIdx.x == 0) published = best;
    cluster_barrier();
    best = *peer_shared(&published, 0);
    for (unsigned rank = 1; rank < blocks; ++rank) best = better(best, *peer_shared(&published, rank));
    return best;
}

// The variances, and the best of this thread's rows.
template <class T>
__device__ inline Candidate load_variances(const PivotTask<T>& task, const RowShare& rows) {
    Candidate mine = task.none();
    for (i64 i = rows.first; i < task.size; i += rows.stride) {
        const auto variance = static_cast<double>(task.matrix[i * (task.row_stride + task.column_stride)]);
        const Candidate row = candidate(variance, i);
        task.left[i] = row.left;
        mine = better(mine, row);
    }
    return mine;
}

// The factor's column of the picked row, taken out of the variances; the best of this thread's rows then.
template <class T>
__device__ inline Candidate take_out(const PivotTask<T>& task, const RowShare& rows, const Candidate& pick,
                                     i64 step, Shared& shared) {
    const double root = sqrt(pick.left);
    double* column = task.columns + step * task.size;
    Candidate mine = task.none();
    // The rows a thread owns, in turns of the staged entries so that long factors fit.
    for (i64 i = rows.first; i - rows.first % kThreads < task.size; i += rows.stride) {
        const bool live = i < task.size && task.left[i] != kPicked;
        double value =
            live ? static_cast<double>(task.matrix[pick.row * task.row_stride + i * task.column_stride])
                 : 0.0;
        for (i64 begin = 0; begin < step; begin += kStaged) {
            const int staged = static_cast<int>(min(i64{kStaged}, step - begin));
            __syncthreads();
            for (int j = static_cast<int>(threadIdx.x); j < staged; j += kThreads) {
                // Another block may have written it: past the first-level cache.
                shared.pick[j] = __ldcg(task.columns + (begin + j) * task.size + pick.row);
            }
            __syncthreads();
            if (!live) continue;
            const double* entries = task.columns + begin * task.size + i;
#pragma unroll 4
            for (int j = 0; j < staged; ++j) value -= entries[j * task.size] * shared.pick[j];
        }
        if (i >= task.size) continue;
        value = live ? value / root : 0.0;
        column[i] = value;
        if (task.factor != nullptr) task.factor[step * task.size + i] = static_cast<T>(value);
        if (!live) continue;
        const Candidate row = candidate(task.left[i] - value * value, i);
        task.left[i] = i == pick.row ? kPicked : row.left;
        if (i != pick.row) mine = better(mine, row);
    }
    return mine;
}

// Beyond the picks: no row, nothing explained.
template <class T>
__device__ inline void pad(const PivotTask<T>& task, const RowShare& rows, i64 picked, double unexplained) {
    for (i64 step = picked; step < task.rank; ++step) {
        for (i64 i = rows.first; i < task.size; i += rows.stride) {
            if (task.factor != nullptr) {
                task.factor[step * task.size + i] = T{0};
            } else {
                task.columns[step * task.size + i] = 0.0;
            }
        }
        if (rows.leader) {
            task.order[step] = -1;
            task.residual[step] = static_cast<T>(unexplained);
        }
    }
}

// One matrix by a block alone or by all `blocks` of its cluster.
template <class T>
__device__ void factorise(const i64* layer, unsigned blocks) {
    Shared& shared = *reinterpret_cast<Shared*>(shared_memory());
    const PivotTask<T> task(layer);
    const RowShare rows(blocks);
    Candidate mine = load_variances(task, rows);
    double floor = 0;
    double unexplained = 0;
    i64 step = 0;
    for (; step <= task.rank; ++step) {
        const Candidate pick = best_row(mine, shared, blocks, static_cast<int>(step % 2));
        unexplained = pick.sum;
        if (step == 0) {
            floor = static_cast<double>(task.size) * static_cast<double>(Float<T>::kEpsilon) * pick.left;
        } else if (rows.leader) {
            task.residual[step - 1] = static_cast<T>(unexplained);
        }
        if (step == task.rank || pick.left <= floor || !(unexplained <= Float<double>::kMax)) break;
        mine = take_out(task, rows, pick, step, shared);
        if (rows.leader) task.order[step] = pick.row;
    }
    pad(task, rows, step, unexplained);
    if (rows.leader) *task.picked = step;
    // Peers may still read this block's candidate.
    if (blocks > 1) cluster_barrier();
}

// Kernel.
__global__ void __launch_bounds__(kThreads, 1)
    factorise_all(const i64* __restrict__ layers, int count, int shared, unsigned cluster) {
    const auto block = static_cast<int>(blockIdx.x);
    const int in_clusters = shared * static_cast<int>(cluster);
    const bool whole = block < in_clusters;
    const int index = whole ? block / static_cast<int>(cluster) : shared + block - in_clusters;
    // The last cluster has more blocks than there are matrices left.
    if (index >= count) return;
    const i64* layer = layers + i64{index} * kPivotFields;
    const unsigned blocks = whole ? cluster : 1;
    if (layer[kPivotIsDouble]) {
        factorise<double>(layer, blocks);
    } else {
        factorise<float>(layer, blocks);
    }
}

}  // namespace

// Launch and entry.

void pivoted_cholesky(Stream stream, const i64* layers, int count, int shared, unsigned cluster) {
    const i64 alone = count - shared;
    const i64 clusters = shared + ceil_div(alone, cluster);
    launch("pivoted_cholesky", factorise_all, stream,
           Shape{clusters * cluster, kThreads, sizeof(Shared), cluster}, layers, count, shared, cluster);
}

}  // namespace slimfast::cuda
