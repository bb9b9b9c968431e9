// The panels of the reduction to a band: QR of each by Householder reflections, in registers.
#include "band.cuh"
#include "packed.cuh"
#include "tridiagonal.cuh"

namespace slimfast::cuda {
namespace {

// Traits.

constexpr int kWarps = 8;
constexpr unsigned kThreads = kWarps * 32;

// Rows of a panel that a thread has in registers at a time: all of its own, or only one.
template <class T, bool kResident>
constexpr int kRowsOf = !kResident ? 1 : (sizeof(T) == 8 ? 2 : 4);

template <class T>
struct PanelShared {
    // A column's products with all others: by warp, and of the block for its peers. Taking turns, as does the
    // row whose entry becomes the next one of the diagonal of R.
    alignas(16) T sums[2][kWarps][kBand];
    T totals[2][kBand];
    T head[2][kBand];
    T weights[kWarps][kBand];
    T gram[kBand][kBand];
};

// Kernels. Copying the matrix into panels.

template <class T>
__global__ void __launch_bounds__(kThreads, 1) largest_of_rows(const i64* __restrict__ layers, int groups) {
    const i64* layer = layers + i64{blockIdx.x / groups} * kEigFields;
    const i64 group = blockIdx.x % groups;
    const BandMemory<T> memory(layer);
    if (group * kBand >= memory.n) return;
    const T* matrix = reinterpret_cast<const T*>(layer[kEigMatrix]);
    T largest = 0;
    const i64 end = min((group + 1) * kBand, layer[kEigSize]);
    for (i64 r = group * kBand + warp_index(); r < end; r += kWarps) {
        for (i64 c = lane_index(); c <= r; c += 32) {
            const T m = magnitude(matrix[r * layer[kEigRowStride] + c * layer[kEigColumnStride]]);
            largest = m > largest ? m : largest;
        }
    }
    const double all = block_max(static_cast<double>(largest), reinterpret_cast<double*>(shared_memory()));
    if (threadIdx.x == 0) memory.largest[group] = all;
}

template <class T>
__global__ void __launch_bounds__(kThreads, 1) copy_to_panels(const i64* __restrict__ layers, int groups) {
    const i64* layer = layers + i64{blockIdx.x / groups} * kEigFields;
    const i64 group = blockIdx.x % groups;
    const BandMemory<T> memory(layer);
    if (group * kBand >= memory.n) return;
    double largest = 0;
    for (i64 i = threadIdx.x; i < memory.n / kBand; i += kThreads) largest = fmax(largest, memory.largest[i]);
    largest = block_max(largest, reinterpret_cast<double*>(shared_memory()));
    // A matrix that is not finite gives NaN in the end; until then anything goes.
    const bool sound = largest <= static_cast<double>(Float<T>::kMax);
    const Scale scale(sound ? largest : 0.0);
    if (group == 0 && threadIdx.x == 0) *memory.undo = sound ? scale.undo() : Float<double>::kNan;

    const T* matrix = reinterpret_cast<const T*>(layer[kEigMatrix]);
    const i64 size = layer[kEigSize];
    for (i64 panel = 0; panel <= group; ++panel) {
        for (i64 row = group * kBand + warp_index(); row < (group + 1) * kBand; row += kWarps) {
            const i64 column = panel * kBand + lane_index();
            memory.panel_row(panel, row)[lane_index()] =
                column <= row && row < size
                    ? scale.apply(matrix[row * layer[kEigRowStride] + column * layer[kEigColumnStride]])
                    : T{0};
        }
    }
    // The last group clears what lies beyond the matrix too.
    const i64 end = (group + 1) * kBand == memory.n ? memory.n + kBandColumn : (group + 1) * kBand;
    for (T* at = memory.band_column(group * kBand) + threadIdx.x; at < memory.band_column(end);
         at += kThreads)
        *at = T{0};
}

// QR of a panel. A thread keeps kRows rows, whose entries move one place to the left with every column, so
// that the next column is always the first: the reflectors' vectors come in from the right. One pass a column
// applies the last reflector and sums the products that the next one needs.
//
// kResident: the rows of a block are all in registers; otherwise they are read and written with each column.
template <class T, bool kResident>
class PanelFactor {
    static constexpr int kRows = kRowsOf<T, kResident>;

  public:
    __device__ PanelFactor(const i64* layer, int panel, unsigned cluster)
        : memory_(layer),
          shared_(*reinterpret_cast<PanelShared<T>*>(shared_memory())),
          panel_(panel),
          first_(panel * kBand),
          cluster_(cluster),
          rank_(cluster > 1 ? cluster_rank() : 0) {
        // Whole warps, and the first two of them hold the block on the diagonal and the rows of R.
        const int rows = static_cast<int>(memory_.n - first_);
        const int share = static_cast<int>(ceil_div(ceil_div(rows, cluster), 2 * kBand)) * 2 * kBand;
        begin_ = static_cast<int>(rank_) * share;
        end_ = min(begin_ + share, rows);
    }

    __device__ void run() {
        if (rank_ == 0) store_diagonal();
        if (first_ + kBand == memory_.n) return;
        T x[kRows][kBand];
        if (kResident) load(x, begin_);
        ScaledReflection<T> reflection{};
        for (int column = -1; column < kBand; ++column) {
            T products[kBand] = {};
            for_rows(x, [&](int begin) {
                if (column >= 0) apply(x, begin, column, reflection);
                if (column + 1 < kBand) add_products(x, begin, column + 1, products);
            });
            if (column + 1 < kBand) reflection = form_reflection(products, column + 1);
        }
        if (kResident) store(x, begin_);
        if (rank_ == 0 && warp_index() == 0) store_factor();
        // Peers have read what this block published.
        if (cluster_ > 1) cluster_barrier();
    }

  private:
    // Rows of the panel are counted from its block on the diagonal.
    __device__ int row_of(int begin, int k) const {
        return begin + k * static_cast<int>(kThreads) + static_cast<int>(threadIdx.x);
    }
    __device__ T* panel_row(int row) const { return memory_.panel_row(panel_, first_ + row); }

    // Calls action(first row) with the rows from there on in x.
    template <class Action>
    __device__ void for_rows(T (&x)[kRows][kBand], Action action) {
        if constexpr (kResident) {
            action(begin_);
        } else {
            for (int begin = begin_; begin < end_; begin += kRows * static_cast<int>(kThreads)) {
                load(x, begin);
                action(begin);
                store(x, begin);
            }
        }
    }
    __device__ void load(T (&x)[kRows][kBand], int begin) const {
#pragma unroll
        for (int k = 0; k < kRows; ++k) {
            const int row = row_of(begin, k);
#pragma unroll
            for (int j = 0; j < kBand; j += kBlock) {
                const Quad<T> quad =
                    row < end_ ? *reinterpret_cast<const Quad<T>*>(panel_row(row) + j) : Quad<T>{};
#pragma unroll
                for (int i = 0; i < kBlock; ++i) x[k][j + i] = quad.x[i];
            }
        }
    }
    __device__ void store(const T (&x)[kRows][kBand], int begin) const {
#pragma unroll
        for (int k = 0; k < kRows; ++k) {
            const int row = row_of(begin, k);
            // The block on the diagonal stays.
            if (row < kBand || row >= end_) continue;
#pragma unroll
            for (int j = 0; j < kBand; j += kBlock) {
                *reinterpret_cast<Quad<T>*>(panel_row(row) + j) = {x[k][j], x[k][j + 1], x[k][j + 2],
                                                                   x[k][j + 3]};
            }
        }
    }

    // The block on the diagonal is done.
    __device__ void store_diagonal() const {
        for (int i = static_cast<int>(threadIdx.x); i < kBand * kBand; i += kThreads) {
            const int row = i / kBand;
            const int column = i % kBand;
            if (column <= row) memory_.band_column(first_ + column)[row - column] = panel_row(row)[column];
        }
    }

    // Column `column` with itself and all others, below its entry on the diagonal of R, and that entry's row.
    __device__ void add_products(const T (&x)[kRows][kBand], int begin, int column, T (&products)[kBand]) {
        const int head = kBand + column;
        const int turn = column & 1;
#pragma unroll
        for (int k = 0; k < kRows; ++k) {
            if (begin + k * static_cast<int>(kThreads) >= end_) break;
            const int row = row_of(begin, k);
            const T lead = row > head && row < end_ ? x[k][0] : T{0};
#pragma unroll
            for (int j = 0; j < kBand; ++j) products[j] += lead * x[k][j];
        }
        if (row_of(begin, 0) != head) return;
#pragma unroll
        for (int j = 0; j < kBand; ++j) shared_.head[turn][j] = x[0][j];
    }

    // Every thread gets the reflection, and its warp's `weights` v^T x of the columns it is applied to.
    __device__ ScaledReflection<T> form_reflection(T (&products)[kBand], int column) {
        const int turn = column & 1;
        const int lane = lane_index();
        shared_.sums[turn][warp_index()][lane] = transposed_sum(products);
        __syncthreads();
        T total = 0;
        for (int w = 0; w < kWarps; ++w) total += shared_.sums[turn][w][lane];
        T head = shared_.head[turn][lane];
        if (cluster_ > 1) {
            if (warp_index() == 0) shared_.totals[turn][lane] = total;
            cluster_barrier();
            total = 0;
            for (unsigned r = 0; r < cluster_; ++r) total += *peer_shared(&shared_.totals[turn][lane], r);
            head = *peer_shared(&shared_.head[turn][lane], 0);
        }
        const T diagonal = __shfl_sync(kAllLanes, head, 0);
        const T tail = __shfl_sync(kAllLanes, total, 0);
        const ScaledReflection<T> reflection = ScaledReflection<T>::of(diagonal, tail);
        const T weight = reflection.scale * total + reflection.first * head;
        // The lanes of columns that are done hold products of two reflectors' vectors.
        const bool is_done = lane >= kBand - column;
        shared_.weights[warp_index()][lane] = lane == 0 || is_done ? T{0} : weight;
        if (warp_index() == 0 && is_done) shared_.gram[column][lane - (kBand - column)] = weight;
        __syncwarp();
        return reflection;
    }

    // Applies the reflector of `column`; its vector comes in last.
    __device__ void apply(T (&x)[kRows][kBand], int begin, int column, ScaledReflection<T> reflection) {
        const int head = kBand + column;
        T u[kRows];
#pragma unroll
        for (int k = 0; k < kRows; ++k) {
            const int row = row_of(begin, k);
            u[k] = row > head ? x[k][0] * reflection.scale : (row == head ? reflection.first : T{0});
        }
#pragma unroll
        for (int begin_j = 0; begin_j < kBand; begin_j += kBlock) {
            const Quad<T> weights =
                *reinterpret_cast<const Quad<T>*>(shared_.weights[warp_index()] + begin_j);
#pragma unroll
            for (int i = begin_j == 0 ? 1 : 0; i < kBlock; ++i) {
#pragma unroll
                for (int k = 0; k < kRows; ++k)
                    x[k][begin_j + i - 1] = x[k][begin_j + i] - u[k] * weights.x[i];
            }
        }
#pragma unroll
        for (int k = 0; k < kRows; ++k) x[k][kBand - 1] = u[k];
        if (row_of(begin, 0) != head) return;
        memory_.band_column(first_ + column)[kBand] = reflection.beta;
#pragma unroll
        for (int j = 1; j < kBand; ++j) {
            if (j < kBand - column) {
                memory_.band_column(first_ + column + j)[kBand - j] = x[0][j - 1];
                // What is left of the row in V.
                x[0][j - 1] = T{0};
            }
        }
    }

    // The product of the reflectors I - v v^T is I - V t V^T with t the inverse of the unit upper triangle of
    // V^T V; lane i forms row i of it.
    __device__ void store_factor() {
        const int lane = lane_index();
        T t[kBand];
#pragma unroll
        for (int j = 0; j < kBand; ++j) {
            T sum = 0;
#pragma unroll
            for (int k = 0; k < j; ++k) sum += t[k] * shared_.gram[j][k];
            t[j] = j == lane ? T{1} : (j > lane ? -sum : T{0});
            memory_.factor[lane * kBand + j] = t[j];
        }
    }

    const BandMemory<T> memory_;
    PanelShared<T>& shared_;
    const int panel_, first_;
    const unsigned cluster_, rank_;
    int begin_, end_;
};

template <class T, bool kResident>
__global__ void __launch_bounds__(kThreads, 1)
    factor_of_panel(const i64* __restrict__ layers, int panel, unsigned cluster) {
    PanelFactor<T, kResident>(layers + i64{blockIdx.x / cluster} * kEigFields, panel, cluster).run();
}

template <class T>
void launch_pack(const BandLaunch& to) {
    const i64 groups = padded_size(to.largest) / kBand;
    const Shape shape{to.count * groups, kThreads, kWarps * sizeof(double)};
    launch("eigvalsh_largest", largest_of_rows<T>, to.stream, shape, to.layers, static_cast<int>(groups));
    launch("eigvalsh_pack", copy_to_panels<T>, to.stream, shape, to.layers, static_cast<int>(groups));
}

template <class T>
void launch_factor(const BandLaunch& to, i64 panel, unsigned cluster) {
    const i64 rows = padded_size(to.largest) - panel * kBand;
    const bool resident = rows <= i64{cluster} * panel_rows(to.is_double);
    launch("eigvalsh_panel", resident ? factor_of_panel<T, true> : factor_of_panel<T, false>, to.stream,
           Shape{to.count * cluster, kThreads, sizeof(PanelShared<T>), cluster}, to.layers,
           static_cast<int>(panel), cluster);
}

}  // namespace

// Launch and entry.

i64 panel_rows(bool is_double) {
    return kThreads * (is_double ? kRowsOf<double, true> : kRowsOf<float, true>);
}

void pack_panels(const BandLaunch& to) { to.is_double ? launch_pack<double>(to) : launch_pack<float>(to); }

void factor_panel(const BandLaunch& to, i64 panel, unsigned cluster) {
    to.is_double ? launch_factor<double>(to, panel, cluster) : launch_factor<float>(to, panel, cluster);
}

}  // namespace slimfast::cuda
