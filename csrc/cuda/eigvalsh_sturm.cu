// Eigenvalues of tridiagonal matrices, by counting how many lie below a point.
#include "eigvalsh.hpp"
#include "sturm.cuh"

namespace slimfast::cuda {
namespace {

// Traits: a thread to each eigenvalue; what the first pass counts serves the whole block.

constexpr unsigned kThreads = kSturmValues;
constexpr int kShifts = 4;
constexpr int kGrid = kShifts * static_cast<int>(kThreads);
// Halvings that the first pass replaces.
constexpr int kGridBits = 9;
static_assert(kGrid == 1 << kGridBits, "the grid has one point per interval");

struct Shared {
    int below[kGrid];  // eigenvalues under each point of the first grid
};

// Kernel. Where the tridiagonal matrix does not fit into shared memory it is read from where it is.

template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    eigenvalues_of(const i64* __restrict__ table, int count, bool staged) {
    Shared& shared = *reinterpret_cast<Shared*>(shared_memory());
    const int index = find_segment(table, count, blockIdx.x);
    const i64* layer = table + count + 1 + i64{index} * kEigFields;
    const int size = static_cast<int>(layer[kEigSize]);
    const double* tridiagonal = reinterpret_cast<const double*>(layer[kEigTridiagonal]);
    const double factor = tridiagonal[2 * i64{size}];
    if (staged) {
        double* copy = reinterpret_cast<double*>(&shared + 1);
        for (int i = static_cast<int>(threadIdx.x); i < 2 * size; i += kThreads) copy[i] = tridiagonal[i];
        tridiagonal = copy;
        __syncthreads();
    }
    const double* squares = tridiagonal + size;

    // Points -1 + width (i + 1/2): the eigenvalues between two of them are those the counts tell apart.
    constexpr double width = 2.0 / kGrid;
    double x[kShifts];
    int below[kShifts];
#pragma unroll
    for (int j = 0; j < kShifts; ++j)
        x[j] = -1.0 + width * (static_cast<int>(threadIdx.x) + j * static_cast<int>(kThreads));
    sturm_counts<kShifts>(tridiagonal, squares, size, x, below);
#pragma unroll
    for (int j = 0; j < kShifts; ++j)
        shared.below[static_cast<int>(threadIdx.x) + j * static_cast<int>(kThreads)] = below[j];
    __syncthreads();

    const int rank = static_cast<int>(blockIdx.x - table[index]) * static_cast<int>(kThreads) +
                     static_cast<int>(threadIdx.x);
    if (rank >= size) return;
    // The last point with at most `rank` eigenvalues under it; point 0 has none.
    int point = 0;
    for (int step = kGrid / 2; step > 0; step /= 2) {
        if (shared.below[point + step] <= rank) point += step;
    }
    const int passes = (sturm_bits<T>() + 2 - kGridBits) / 2;
    const double value =
        quarter_interval(tridiagonal, squares, size, rank, -1.0 + width * point, width, passes);
    reinterpret_cast<T*>(layer[kEigOut])[rank] = static_cast<T>(value * factor);
}

}  // namespace

// Launch and entry.

void sturm_eigenvalues(Stream stream, const i64* table, int count, i64 blocks, bool is_double, i64 largest) {
    const std::size_t with_matrix = sizeof(Shared) + 2 * sizeof(double) * static_cast<std::size_t>(largest);
    const bool staged = with_matrix <= device_limits(stream.device).shared_bytes;
    const Shape shape{blocks, kThreads, staged ? with_matrix : sizeof(Shared)};
    if (is_double) {
        launch("eigvalsh_sturm", eigenvalues_of<double>, stream, shape, table, count, staged);
    } else {
        launch("eigvalsh_sturm", eigenvalues_of<float>, stream, shape, table, count, staged);
    }
}

}  // namespace slimfast::cuda
