// A band to a tridiagonal matrix by chasing bulges down it.
//
// Sweep s takes column s: a reflector on the rows below it leaves one subdiagonal entry and fills a block
// further down, whose first column the next reflector of the sweep clears, and so on to the end (Lang, "A
// parallel algorithm for reducing symmetric banded matrices to tridiagonal form", SIAM J. Sci. Comput. 14,
// 1993). A warp to each sweep, all at work in step: two hops behind each other they do not touch the same
// entries. The warps are those of one block or of a cluster's; the arithmetic is the same.
#include "band.cuh"
#include "packed.cuh"
#include "sturm.cuh"
#include "tridiagonal.cuh"

namespace slimfast::cuda {
namespace {

// Traits.

// At most: as many as there are registers for.
template <class T>
constexpr int kChaseWarps = sizeof(T) == 8 ? 8 : 16;

// From one entry of a band's row to the next.
constexpr int kNext = kBandColumn - 1;

// What a warp's lanes show each other.
template <class T>
struct ChaseShared {
    // The reflector's vector, and what else is needed of every lane.
    alignas(16) T vector[kBand];
    T other[kBand];
    // The block on the diagonal by columns, these one longer so that rows are read from all banks.
    T block[kBand][kBand + 1];
};

// Kernel. Lane i has row i of each block.

template <class T>
class Sweep {
  public:
    __device__ Sweep(T* band, ChaseShared<T>& shared, i64 size)
        : band_(band), shared_(shared), size_(size), row_(size) {}

    // The first reflector, from column `column`.
    __device__ void begin(i64 column) {
        T* const x = band_ + column * kBandColumn + 1 + lane_index();
        row_ = clear(x, *x) ? column + 1 : size_;
    }

    // Applies the reflector to the block on the diagonal and the one below, and finds the next one there.
    __device__ void hop() {
        if (row_ >= size_ - 1) return;
        T* const diagonal = band_ + row_ * kBandColumn + lane_index();
        reflect_diagonal(diagonal);
        row_ = reflect_below(diagonal + kBand) ? row_ + kBand : size_;
    }

  private:
    // Makes `u_` the vector of the reflector I - u u^T that maps x, of which each lane has an entry, onto its
    // first entry, and stores that. False where it already is of that form.
    __device__ bool clear(T* at, T x) {
        const bool first = lane_index() == 0;
        const T tail = warp_sum(first ? T{0} : x * x);
        const ScaledReflection<T> reflection = ScaledReflection<T>::of(__shfl_sync(kAllLanes, x, 0), tail);
        u_ = first ? reflection.first : x * reflection.scale;
        *at = first ? reflection.beta : T{0};
        return reflection.scale != T{0};
    }

    // Calls action(c, vector[c], other[c]) for all columns.
    template <class Action>
    __device__ void each_column(Action action) const {
#pragma unroll
        for (int begin = 0; begin < kBand; begin += kBlock) {
            const Quad<T> u = *reinterpret_cast<const Quad<T>*>(shared_.vector + begin);
            const Quad<T> other = *reinterpret_cast<const Quad<T>*>(shared_.other + begin);
#pragma unroll
            for (int i = 0; i < kBlock; ++i) action(begin + i, u.x[i], other.x[i]);
        }
    }

    // d -= u q^T + q u^T with q = d u - (u^T d u) u / 2, for the lower triangle of the symmetric block.
    __device__ void reflect_diagonal(T* at) {
        const int lane = lane_index();
        shared_.vector[lane] = u_;
        T d[kBand];
#pragma unroll
        for (int c = 0; c < kBand; ++c) {
            d[c] = lane >= c ? at[c * kNext] : T{0};
            shared_.block[c][lane] = d[c];
        }
        __syncwarp();
        T sum[kBlock] = {};
        each_column(
            [&](int c, T u, T) { sum[c % kBlock] += (lane >= c ? d[c] : shared_.block[lane][c]) * u; });
        const T product = (sum[0] + sum[1]) + (sum[2] + sum[3]);
        const T q = product - warp_sum(product * u_) / 2 * u_;
        shared_.other[lane] = q;
        __syncwarp();
        each_column([&](int c, T u, T other) {
            if (lane >= c) at[c * kNext] = d[c] - u_ * other - q * u;
        });
    }

    // From the right the reflector u of the block's columns, then from the left the one that clears its first
    // column, which replaces u. False where none is needed, which ends the sweep.
    __device__ bool reflect_below(T* at) {
        T b[kBand];
#pragma unroll
        for (int c = 0; c < kBand; ++c) b[c] = at[c * kNext];
        T sum[kBlock] = {};
        each_column([&](int c, T u, T) { sum[c % kBlock] += b[c] * u; });
        const T w = (sum[0] + sum[1]) + (sum[2] + sum[3]);
        const T u = u_;
        const bool more = clear(at, b[0] - w * shared_.vector[0]);
        T products[kBand];
#pragma unroll
        for (int c = 0; c < kBand; ++c) products[c] = b[c] * u_;
        const T z = transposed_sum(products) - warp_sum(w * u_) * u;
        // Every lane has read `other`: the sums came after.
        shared_.other[lane_index()] = z;
        __syncwarp();
        each_column([&](int c, T right, T left) {
            if (c > 0) at[c * kNext] = b[c] - w * right - u_ * left;
        });
        return more;
    }

    T* const band_;
    ChaseShared<T>& shared_;
    const i64 size_;
    // Where the reflector's rows begin; at the matrix' end when the sweep is over.
    i64 row_;
    T u_ = 0;
};

template <class T>
__global__ void __launch_bounds__(kChaseWarps<T> * 32, 1)
    chase_bulges(const i64* __restrict__ layers, unsigned cluster) {
    const i64* layer = layers + i64{blockIdx.x / cluster} * kEigFields;
    const BandMemory<T> memory(layer);
    const i64 size = layer[kEigSize];
    Sweep<T> sweep(memory.band, reinterpret_cast<ChaseShared<T>*>(shared_memory())[warp_index()], size);
    // Sweep s starts at step s lag, when its warp is done with sweep s - warps.
    const i64 in_block = blockDim.x / 32;
    const i64 warps = in_block * cluster;
    const i64 sweeps = max(size - 2, i64{0});
    const i64 lag = max(ceil_div(ceil_div(sweeps, kBand), warps), i64{2});
    i64 next = (cluster > 1 ? cluster_rank() * in_block : 0) + warp_index();
    for (i64 step = 0; step < (sweeps - 1) * lag + 1; ++step) {
        if (step == next * lag) {
            sweep.begin(next);
            next += warps;
        }
        sweep.hop();
        if (cluster > 1) {
            cluster_barrier();
        } else {
            __syncthreads();
        }
    }
    if (cluster > 1 && cluster_rank() > 0) return;
    double* const tridiagonal = reinterpret_cast<double*>(layer[kEigTridiagonal]);
    for (i64 i = threadIdx.x; i < size; i += blockDim.x) {
        tridiagonal[i] = static_cast<double>(memory.band_column(i)[0]);
        tridiagonal[size + i] = i > 0 ? static_cast<double>(memory.band_column(i - 1)[1]) : 0.0;
    }
    __syncthreads();
    normalise_for_sturm(tridiagonal, static_cast<int>(size), *memory.undo,
                        reinterpret_cast<double*>(shared_memory()));
}

}  // namespace

// Launch and entry.

unsigned chase_warps(bool is_double) { return is_double ? kChaseWarps<double> : kChaseWarps<float>; }

void chase_bulges(Stream stream, const i64* layers, int count, bool is_double, unsigned cluster,
                  unsigned warps) {
    const i64 blocks = i64{count} * cluster;
    if (is_double) {
        launch("eigvalsh_chase", chase_bulges<double>, stream,
               Shape{blocks, warps * 32, warps * sizeof(ChaseShared<double>), cluster}, layers, cluster);
    } else {
        launch("eigvalsh_chase", chase_bulges<float>, stream,
               Shape{blocks, warps * 32, warps * sizeof(ChaseShared<float>), cluster}, layers, cluster);
    }
}

}  // namespace slimfast::cuda
