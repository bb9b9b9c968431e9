// Eigenvalues of small matrices from beginning to end, a warp to each.
#include "eigvalsh.hpp"
#include "sturm.cuh"
#include "tridiagonal.cuh"

namespace slimfast::cuda {
namespace {

// Traits.

constexpr int kM = kWarpMatrix;
constexpr int kWarps = 4;

template <class T>
struct WarpShared {
    // The row that is being eliminated, the reflection's vector and its companion.
    alignas(16) T row[kM], u[kM], w[kM];
    double d[kM], squares[kM];
};

// Kernel: lane i keeps row i in registers; whatever all lanes need goes through shared memory.

// Row `lane` of the matrix into `a`, with zeros beyond it; returns the largest magnitude of all rows.
template <class T>
__device__ inline T load_row(const i64* layer, T (&a)[kM]) {
    const T* matrix = reinterpret_cast<const T*>(layer[kEigMatrix]);
    const int size = static_cast<int>(layer[kEigSize]);
    const i64 row_stride = layer[kEigRowStride];
    const i64 column_stride = layer[kEigColumnStride];
    const int lane = lane_index();
    T largest = 0;
#pragma unroll
    for (int c = 0; c < kM; ++c) {
        const int high = c < lane ? lane : c;
        const int low = c < lane ? c : lane;
        a[c] = high < size ? matrix[high * row_stride + low * column_stride] : T{0};
        const T m = magnitude(a[c]);
        largest = m > largest ? m : largest;
    }
    return warp_max(largest);
}

// Row `lane` of the tridiagonal form: its diagonal entry, and the one before that.
struct TridiagonalRow {
    double diagonal, below;
};

template <class T>
__device__ inline TridiagonalRow reduce_rows(T (&a)[kM], int size, WarpShared<T>& shared) {
    const int lane = lane_index();
    TridiagonalRow mine{0.0, 0.0};
    for (int s = size - 1; s >= 0; --s) {
        if (lane == s) {
#pragma unroll
            for (int c = 0; c < kM; ++c) shared.row[c] = a[c];
        }
        __syncwarp();
        const T x = lane < s ? shared.row[lane] : T{0};
        const double alpha = s > 0 ? static_cast<double>(shared.row[s - 1]) : 0.0;
        if (lane == s) mine.diagonal = static_cast<double>(shared.row[s]);
        const double rest = warp_sum(lane < s - 1 ? static_cast<double>(x) * static_cast<double>(x) : 0.0);
        const Reflection reflection = Reflection::of(alpha, rest, T{});
        if (lane == s) mine.below = reflection.beta;
        const T u = lane == s - 1 ? static_cast<T>(reflection.head) : x;
        shared.u[lane] = u;
        __syncwarp();
        T y = 0;
#pragma unroll
        for (int c = 0; c < kM; ++c) y += a[c] * shared.u[c];
        const double dot = warp_sum(static_cast<double>(y) * static_cast<double>(u));
        const T gamma = static_cast<T>(0.5 * reflection.t * reflection.t * dot);
        const T w = lane < s ? static_cast<T>(reflection.t) * y - gamma * u : T{0};
        shared.w[lane] = w;
        __syncwarp();
#pragma unroll
        for (int c = 0; c < kM; ++c) a[c] -= u * shared.w[c] + w * shared.u[c];
    }
    return mine;
}

// The eigenvalue of rank `lane`.
template <class T>
__device__ inline double eigenvalue_of_lane(const TridiagonalRow& mine, int size, WarpShared<T>& shared) {
    const int lane = lane_index();
    const double next_below = __shfl_down_sync(kAllLanes, mine.below, 1);
    double reach = lane < size
                       ? fabs(mine.diagonal) + fabs(mine.below) + (lane + 1 < size ? fabs(next_below) : 0.0)
                       : 0.0;
    reach = warp_max(reach);
    const double unit = sturm_unit(reach);
    shared.d[lane] = mine.diagonal / unit;
    shared.squares[lane] = square_for_sturm(mine.below / unit);
    __syncwarp();
    if (lane >= size || reach == 0.0) return 0.0;
    return quarter_interval(shared.d, shared.squares, size, lane, -1.0, 2.0, (sturm_bits<T>() + 2) / 2) *
           unit;
}

template <class T>
__global__ void __launch_bounds__(kWarps * 32, 1) warp_per_matrix(const i64* __restrict__ layers, int count) {
    const int index = static_cast<int>(blockIdx.x) * kWarps + warp_index();
    if (index >= count) return;
    WarpShared<T>& shared = reinterpret_cast<WarpShared<T>*>(shared_memory())[warp_index()];
    const i64* layer = layers + i64{index} * kEigFields;
    const int size = static_cast<int>(layer[kEigSize]);
    T* out = reinterpret_cast<T*>(layer[kEigOut]);
    const int lane = lane_index();

    T a[kM];
    const T largest = load_row(layer, a);
    if (largest > Float<T>::kMax) {
        if (lane < size) out[lane] = Float<T>::kNan;
        return;
    }
    const Scale scale(largest);
#pragma unroll
    for (int c = 0; c < kM; ++c) a[c] = scale.apply(a[c]);
    const TridiagonalRow mine = reduce_rows(a, size, shared);
    const double value = eigenvalue_of_lane(mine, size, shared);
    if (lane < size) out[lane] = static_cast<T>(value * scale.undo());
}

}  // namespace

// Launch and entry.

void eigvalsh_warp(Stream stream, const i64* layers, int count, bool is_double) {
    const i64 blocks = ceil_div(count, kWarps);
    if (is_double) {
        launch("eigvalsh_warp", warp_per_matrix<double>, stream,
               Shape{blocks, kWarps * 32, kWarps * sizeof(WarpShared<double>)}, layers, count);
    } else {
        launch("eigvalsh_warp", warp_per_matrix<float>, stream,
               Shape{blocks, kWarps * 32, kWarps * sizeof(WarpShared<float>)}, layers, count);
    }
}

}  // namespace slimfast::cuda
