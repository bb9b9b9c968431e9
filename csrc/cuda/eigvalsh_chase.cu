// A band to a tridiagonal matrix by chasing bulges down it.
//
// Sweep s takes column s: a reflector on the rows below it leaves one subdiagonal entry and fills a block
// further down, whose first column the next reflector of the sweep clears, and so on to the end (Lang, "A
// parallel algorithm for reducing symmetric banded matrices to tridiagonal form", SIAM J. Sci. Comput. 14,
// 1993). A warp to each sweep, all at work in step: two hops behind each other they do not touch the same
// entries.
#include "band.cuh"
#include "sturm.cuh"
#include "tridiagonal.cuh"

namespace slimfast::cuda {
namespace {

// Traits.

// As many as there are registers for.
template <class T>
constexpr int kChaseWarps = sizeof(T) == 8 ? 8 : 16;

// From one entry of a band's row to the next.
constexpr int kNext = kBandColumn - 1;

// What a warp's lanes show each other.
template <class T>
struct ChaseShared {
    // The block on the diagonal by columns, one longer than the rest so that rows are read from all banks.
    T block[kBand][kBand + 1];
    alignas(16) T vector[kBand];
    T other[kBand];
};

// Kernel. Lane i has row i of each block.

template <class T>
class Sweep {
  public:
    __device__ Sweep(T* band, ChaseShared<T>& shared) : band_(band), shared_(shared) {}

    // The first reflector, from column `column`.
    __device__ void begin(std::int64_t column) {
        T* const x = band_ + column * kBandColumn + 1;
        row_ = column + 1;
        active_ = clear(x + lane_index(), x[lane_index()]);
    }

    // Applies the reflector to the block on the diagonal and the one below, and finds the next one there.
    __device__ void hop() {
        if (!active_) return;
        T* const diagonal = band_ + row_ * kBandColumn + lane_index();
        shared_.vector[lane_index()] = u_;
        reflect_diagonal(diagonal);
        active_ = reflect_below(diagonal + kBand);
        row_ += kBand;
    }

  private:
    // Makes `u_` the vector of the reflector I - u u^T that maps x, of which each lane has an entry, onto its
    // first entry, and stores that. False where it already is of that form.
    __device__ bool clear(T* at, T x) {
        const int lane = lane_index();
        const double head = static_cast<double>(__shfl_sync(kAllLanes, x, 0));
        const double tail = static_cast<double>(warp_sum(lane == 0 ? T{0} : x * x));
        const ScaledReflection reflection = ScaledReflection::of(head, tail, T{});
        u_ = lane == 0 ? static_cast<T>((head - reflection.beta) * reflection.scale)
                       : x * static_cast<T>(reflection.scale);
        *at = lane == 0 ? static_cast<T>(reflection.beta) : T{0};
        return reflection.scale != 0.0;
    }

    // d -= u q^T + q u^T with q = d u - (u^T d u) u / 2, for the lower triangle of the symmetric block.
    __device__ void reflect_diagonal(T* at) {
        const int lane = lane_index();
        T d[kBand];
#pragma unroll
        for (int c = 0; c < kBand; ++c) {
            d[c] = lane >= c ? at[c * kNext] : T{0};
            shared_.block[c][lane] = d[c];
        }
        __syncwarp();
        T sum[4] = {};
#pragma unroll
        for (int c = 0; c < kBand; ++c)
            sum[c % 4] += (lane >= c ? d[c] : shared_.block[lane][c]) * shared_.vector[c];
        const T product = (sum[0] + sum[1]) + (sum[2] + sum[3]);
        const T q = product - warp_sum(product * u_) / 2 * u_;
        shared_.other[lane] = q;
        __syncwarp();
#pragma unroll
        for (int c = 0; c < kBand; ++c) {
            if (lane >= c) at[c * kNext] = d[c] - u_ * shared_.other[c] - q * shared_.vector[c];
        }
    }

    // From the right the reflector u of the block's columns, then from the left the one that clears its first
    // column, which replaces u. False where none is needed, which ends the sweep.
    __device__ bool reflect_below(T* at) {
        const int lane = lane_index();
        T b[kBand];
        T sum[4] = {};
#pragma unroll
        for (int c = 0; c < kBand; ++c) {
            b[c] = at[c * kNext];
            sum[c % 4] += b[c] * shared_.vector[c];
        }
        const T w = (sum[0] + sum[1]) + (sum[2] + sum[3]);
        const T u = u_;
        const bool more = clear(at, b[0] - w * shared_.vector[0]);
        T products[kBand];
#pragma unroll
        for (int c = 0; c < kBand; ++c) products[c] = b[c] * u_;
        const T z = transposed_sum(products) - warp_sum(w * u_) * u;
        // Every lane has read `other`: the sums came after.
        shared_.other[lane] = z;
        __syncwarp();
#pragma unroll
        for (int c = 1; c < kBand; ++c) at[c * kNext] = b[c] - w * shared_.vector[c] - u_ * shared_.other[c];
        return more;
    }

    T* band_;
    ChaseShared<T>& shared_;
    std::int64_t row_ = 0;
    T u_ = 0;
    bool active_ = false;
};

template <class T>
__global__ void __launch_bounds__(kChaseWarps<T> * 32, 1)
    chase_bulges(const std::int64_t* __restrict__ layers) {
    constexpr int kWarps = kChaseWarps<T>;
    const std::int64_t* layer = layers + std::int64_t{blockIdx.x} * kEigFields;
    const BandMemory<T> memory(layer);
    const std::int64_t size = layer[kEigSize];
    Sweep<T> sweep(memory.band, reinterpret_cast<ChaseShared<T>*>(shared_memory())[warp_index()]);
    // Sweep s starts at step s lag, when its warp is done with sweep s - kWarps.
    const std::int64_t sweeps = max(size - 2, std::int64_t{0});
    const std::int64_t lag = max(blocks_of(blocks_of(sweeps, kBand), kWarps), std::int64_t{2});
    for (std::int64_t step = 0; step < (sweeps - 1) * lag + 1; ++step) {
        const std::int64_t newest = step / lag;
        const std::int64_t mine = newest - (newest + kWarps - warp_index()) % kWarps;
        if (mine >= 0 && mine < sweeps) {
            const std::int64_t hop = step - mine * lag;
            if (hop == 0) sweep.begin(mine);
            if (mine + 1 + hop * kBand < size - 1) sweep.hop();
        }
        __syncthreads();
    }
    double* const tridiagonal = reinterpret_cast<double*>(layer[kEigTridiagonal]);
    for (std::int64_t i = threadIdx.x; i < size; i += kWarps * 32) {
        tridiagonal[i] = static_cast<double>(memory.band_column(i)[0]);
        tridiagonal[size + i] = i > 0 ? static_cast<double>(memory.band_column(i - 1)[1]) : 0.0;
    }
    __syncthreads();
    normalise_for_sturm(tridiagonal, static_cast<int>(size), *memory.undo,
                        reinterpret_cast<double*>(shared_memory()));
}

}  // namespace

// Launch and entry.

void chase_bulges(Stream stream, const std::int64_t* layers, int count, bool is_double) {
    if (is_double) {
        constexpr int kWarps = kChaseWarps<double>;
        launch("eigvalsh_chase", chase_bulges<double>, stream,
               Shape{count, kWarps * 32, kWarps * sizeof(ChaseShared<double>)}, layers);
    } else {
        constexpr int kWarps = kChaseWarps<float>;
        launch("eigvalsh_chase", chase_bulges<float>, stream,
               Shape{count, kWarps * 32, kWarps * sizeof(ChaseShared<float>)}, layers);
    }
}

}  // namespace slimfast::cuda
