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

// Each thread owns the rows i, i + threads, ... of the matrix in its blocks' count of threads.

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

// One matrix by a block alone or by all `blocks` of its cluster.
template <class T>
__device__ void factorise(const i64* layer, unsigned blocks) {
    Shared& shared = *reinterpret_cast<Shared*>(shared_memory());
    const T* matrix = reinterpret_cast<const T*>(layer[kPivotMatrix]);
    const i64 size = layer[kPivotSize];
    const i64 rank = layer[kPivotRank];
    const i64 row_stride = layer[kPivotRowStride];
    const i64 column_stride = layer[kPivotColumnStride];
    double* left = reinterpret_cast<double*>(layer[kPivotLeft]);
    double* columns = reinterpret_cast<double*>(layer[kPivotColumns]);
    T* factor = reinterpret_cast<T*>(layer[kPivotFactor]);
    T* residual = reinterpret_cast<T*>(layer[kPivotResidual]);
    auto* order = reinterpret_cast<i64*>(layer[kPivotOrder]);
    const bool leader = threadIdx.x == 0 && (blocks == 1 || cluster_rank() == 0);
    const i64 first = (blocks == 1 ? 0 : cluster_rank()) * kThreads + threadIdx.x;
    const i64 stride = i64{blocks} * kThreads;
    const Candidate none{-1.0, size, 0.0};

    Candidate mine = none;
    for (i64 i = first; i < size; i += stride) {
        const auto variance = static_cast<double>(matrix[i * (row_stride + column_stride)]);
        const Candidate row = candidate(variance, i);
        left[i] = row.left;
        mine = better(mine, row);
    }
    double floor = 0;
    double unexplained = 0;
    i64 step = 0;
    for (; step <= rank; ++step) {
        const Candidate pick = best_row(mine, shared, blocks, static_cast<int>(step % 2));
        unexplained = pick.sum;
        if (step == 0) {
            floor = static_cast<double>(size) * static_cast<double>(Float<T>::kEpsilon) * pick.left;
        } else if (leader) {
            residual[step - 1] = static_cast<T>(unexplained);
        }
        if (step == rank || pick.left <= floor || !(unexplained <= Float<double>::kMax)) break;
        const double root = sqrt(pick.left);
        double* column = columns + step * size;
        mine = none;
        // The rows a thread owns, in turns of the staged entries so that long factors fit.
        for (i64 i = first; i - first % kThreads < size; i += stride) {
            const bool live = i < size && left[i] != kPicked;
            double value =
                live ? static_cast<double>(matrix[pick.row * row_stride + i * column_stride]) : 0.0;
            for (i64 begin = 0; begin < step; begin += kStaged) {
                const int staged = static_cast<int>(min(i64{kStaged}, step - begin));
                __syncthreads();
                for (int j = static_cast<int>(threadIdx.x); j < staged; j += kThreads) {
                    // Another block may have written it: past the first-level cache.
                    shared.pick[j] = __ldcg(columns + (begin + j) * size + pick.row);
                }
                __syncthreads();
                if (!live) continue;
                const double* rows = columns + begin * size + i;
#pragma unroll 4
                for (int j = 0; j < staged; ++j) value -= rows[j * size] * shared.pick[j];
            }
            if (i >= size) continue;
            value = live ? value / root : 0.0;
            column[i] = value;
            if (factor != nullptr) factor[step * size + i] = static_cast<T>(value);
            if (!live) continue;
            const Candidate row = candidate(left[i] - value * value, i);
            left[i] = i == pick.row ? kPicked : row.left;
            if (i != pick.row) mine = better(mine, row);
        }
        if (leader) order[step] = pick.row;
    }
    // Beyond the picks: no row, nothing explained.
    for (i64 padded = step; padded < rank; ++padded) {
        for (i64 i = first; i < size; i += stride) {
            if (factor != nullptr) {
                factor[padded * size + i] = T{0};
            } else {
                columns[padded * size + i] = 0.0;
            }
        }
        if (leader) {
            order[padded] = -1;
            residual[padded] = static_cast<T>(unexplained);
        }
    }
    if (leader) *reinterpret_cast<i64*>(layer[kPivotPicked]) = step;
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
