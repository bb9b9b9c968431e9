// Reduction to tridiagonal form in one stage, of matrices that fit into shared memory.
#include <type_traits>

#include "eigvalsh.hpp"
#include "packed.cuh"
#include "sturm.cuh"
#include "tridiagonal.cuh"

namespace slimfast::cuda {
namespace {

// Traits.

constexpr int kWarps = kReductionWarps;
constexpr unsigned kThreads = kWarps * 32;

// Kernel. Rows are eliminated from the last to the second. In a column's step, first every thread forms the
// companion of the pending reflection and with it the updated row s; then one pass over the triangle applies
// the pending update and multiplies the result by the new vector. Two barriers a step; with peers one more,
// and one of the cluster.

template <class T, bool kPeers>
class Reduction {
  public:
    __device__ Reduction(const i64* layer, unsigned cluster)
        : layer_(layer),
          size_(static_cast<int>(layer[kEigSize])),
          padded_(static_cast<int>(row_blocks(size_)) * kBlock),
          cluster_(kPeers ? cluster : 1),
          rank_(kPeers ? cluster_rank() : 0),
          memory_(shared_memory(), padded_),
          tridiagonal_(reinterpret_cast<double*>(layer[kEigTridiagonal])),
          a_(memory_.storage) {}

    __device__ void run() {
        const double largest = largest_entry();
        const bool sound = largest <= static_cast<double>(Float<T>::kMax);
        const Scale scale(sound ? largest : 0.0);
        const bool leader = rank_ == 0 && threadIdx.x == 0;
        load(scale);
        Reflection pending{0.0, 0.0, 0.0};
        for (int s = size_ - 1; s > 0; --s) {
            T* const old = memory_.vectors + s % 2 * padded_;
            T* const fresh = memory_.vectors + (1 - s % 2) * padded_;
            const double diagonal = form_row(s, pending, old, fresh);
            __syncthreads();
            double rest = 0;
            for (int w = 0; w < kWarps; ++w) rest += memory_.norms[w];
            const Reflection reflection = Reflection::of(static_cast<double>(fresh[s - 1]), rest, T{});
            if (leader) {
                tridiagonal_[s] = diagonal;
                tridiagonal_[size_ + s] = reflection.beta;
            }
            sweep(s, old, fresh, static_cast<T>(reflection.head));
            __syncthreads();
            if (kPeers) publish(s);
            pending = reflection;
        }
        if (leader) {
            tridiagonal_[0] = static_cast<double>(a_[0]);
            tridiagonal_[size_] = 0.0;
        }
        // Entry 0 is used by the thread that wrote it, and the rest was written before the last barrier.
        // The last publish was followed by a barrier of the cluster: no peer reads here any more.
        if (rank_ == 0)
            normalise_for_sturm(tridiagonal_, size_, sound ? scale.undo() : Float<double>::kNan,
                                memory_.norms);
    }

  private:
    // What `mine` is in the block of `rank`.
    template <class V>
    __device__ V read_peer(const V* mine, unsigned rank) const {
        return *peer_shared(mine, rank);
    }

    // The largest magnitude of the whole lower triangle, or infinity; known to every thread.
    __device__ double largest_entry() {
        const T* matrix = reinterpret_cast<const T*>(layer_[kEigMatrix]);
        T largest = 0;
        for (i64 r = rank_ * kWarps + warp_index(); r < size_; r += cluster_ * kWarps) {
            for (i64 c = lane_index(); c <= r; c += 32) {
                const T m = magnitude(matrix[r * layer_[kEigRowStride] + c * layer_[kEigColumnStride]]);
                largest = m > largest ? m : largest;
            }
        }
        double all = block_max(static_cast<double>(largest), memory_.norms);
        if (!kPeers) return all;
        if (threadIdx.x == 0) *memory_.largest = all;
        cluster_barrier();
        for (unsigned r = 0; r < cluster_; ++r) all = fmax(all, read_peer(memory_.largest, r));
        return all;
    }

    // Scaled rows of this block, and zeros wherever a sum of products is read before it was first formed.
    __device__ void load(Scale scale) {
        const T* matrix = reinterpret_cast<const T*>(layer_[kEigMatrix]);
        for (i64 r = rank_ + cluster_ * warp_index(); r < row_blocks(size_); r += cluster_ * kWarps) {
            T* block = a_ + row_block_start(r, rank_, cluster_);
            const i64 length = kBlock * (r + 1);
            for (int i = 0; i < kBlock; ++i) {
                for (i64 c = lane_index(); c < length; c += 32) {
                    const i64 high = max(c, kBlock * r + i);
                    const i64 low = min(c, kBlock * r + i);
                    block[i * length + c] =
                        high < size_
                            ? scale.apply(
                                  matrix[high * layer_[kEigRowStride] + low * layer_[kEigColumnStride]])
                            : T{0};
                }
            }
        }
        for (int c = static_cast<int>(threadIdx.x); c < padded_; c += kThreads) {
            memory_.vectors[c] = memory_.vectors[padded_ + c] = memory_.companion[c] = memory_.rows[c] = T{0};
            for (int w = 0; w < kWarps; ++w) memory_.columns[w * padded_ + c] = T{0};
        }
        if (threadIdx.x < kWarps) memory_.dots[threadIdx.x] = 0.0;
        __syncthreads();
        if (kPeers) publish(size_);
    }

    // Element c of A u, where row s is the next to be eliminated.
    __device__ T product(int s, int c) const {
        T sum = 0;
        if (kPeers) {
            for (unsigned r = 0; r < cluster_; ++r) sum += read_peer(memory_.share + s % 2 * padded_ + c, r);
            return sum;
        }
        sum = memory_.rows[c];
        for (int w = 0; w < kWarps; ++w) sum += memory_.columns[w * padded_ + c];
        return sum;
    }
    // Element c of row s, the next to be eliminated.
    __device__ T entry(int s, int c) const {
        return kPeers ? read_peer(memory_.next_row + s % 2 * padded_ + c, s / kBlock % cluster_)
                      : own_row(s)[c];
    }
    __device__ const T* own_row(int s) const {
        const int r = s / kBlock;
        return a_ + row_block_start(r, rank_, cluster_) + s % kBlock * kBlock * (r + 1);
    }

    // Row s with the pending update goes into `fresh`, its companion into memory; returns the diagonal entry.
    __device__ double form_row(int s, const Reflection& pending, const T* old, T* fresh) {
        double dot = 0;
        if (kPeers) {
            for (unsigned r = 0; r < cluster_; ++r) dot += read_peer(memory_.sent + s % 2, r);
        } else {
            for (int w = 0; w < kWarps; ++w) dot += memory_.dots[w];
        }
        const T t = static_cast<T>(pending.t);
        const T gamma = static_cast<T>(0.5 * pending.t * pending.t * dot);
        const T v_s = static_cast<T>(pending.head);
        const T w_s = t * product(s, s) - gamma * v_s;
        double square = 0;
        const int end = ((s - 1) / kBlock + 1) * kBlock;
        for (int c = static_cast<int>(threadIdx.x); c < end; c += kThreads) {
            T x = 0;
            if (c < s) {
                const T w_c = t * product(s, c) - gamma * old[c];
                memory_.companion[c] = w_c;
                x = entry(s, c) - v_s * w_c - w_s * old[c];
            }
            fresh[c] = x;
            if (c < s - 1) square += static_cast<double>(x) * static_cast<double>(x);
        }
        square = warp_sum(square);
        if (lane_index() == 0) memory_.norms[warp_index()] = square;
        return static_cast<double>(entry(s, s) - 2 * v_s * w_s);
    }

    __device__ static Quad<T> load_quad(const T* from) { return *reinterpret_cast<const Quad<T>*>(from); }
    // The new vector's entries, where the last one is the reflection's head instead of the row's entry.
    __device__ static Quad<T> load_vector(const T* fresh, int first, int last, T head) {
        Quad<T> quad = load_quad(fresh + first);
#pragma unroll
        for (int i = 0; i < kBlock; ++i) quad.x[i] = first + i == last ? head : quad.x[i];
        return quad;
    }

    // Applies the pending update to all entries before row and column s, and multiplies them by the new
    // vector.
    __device__ void sweep(int s, const T* old, const T* fresh, T head) {
        const int last_block = (s - 1) / kBlock;
        const int lane = lane_index();
        const int stride = static_cast<int>(cluster_) * kWarps;
        const int mine = static_cast<int>(rank_ + cluster_ * warp_index());
        T dot = 0;
        for (int slab = 0; slab * 32 <= last_block; ++slab) {
            const int column_block = slab * 32 + lane;
            const bool active = column_block <= last_block;
            const int column = kBlock * (active ? column_block : 0);
            const Quad<T> v_column = load_quad(old + column);
            const Quad<T> w_column = load_quad(memory_.companion + column);
            const Quad<T> u_column = load_vector(fresh, column, s - 1, head);
            Quad<T> down{};
            // The first of this warp's row blocks that reaches into the slab.
            const int skipped = slab * 32 > mine ? (slab * 32 - mine + stride - 1) / stride : 0;
            for (int r = mine + skipped * stride; r <= last_block; r += stride) {
                const Quad<T> v_row = load_quad(old + kBlock * r);
                const Quad<T> w_row = load_quad(memory_.companion + kBlock * r);
                const Quad<T> u_row = load_vector(fresh, kBlock * r, s - 1, head);
                Quad<T> across{};
                if (column_block <= r) {
                    T* tile = a_ + row_block_start(r, rank_, cluster_) + column;
#pragma unroll
                    for (int i = 0; i < kBlock; ++i) {
                        auto* address = reinterpret_cast<Quad<T>*>(tile + i * kBlock * (r + 1));
                        Quad<T> entry = *address;
#pragma unroll
                        for (int j = 0; j < kBlock; ++j) {
                            entry.x[j] -= v_row.x[i] * w_column.x[j] + w_row.x[i] * v_column.x[j];
                            across.x[i] += entry.x[j] * u_column.x[j];
                            // The tile on the diagonal holds both halves.
                            if (column_block < r) down.x[j] += entry.x[j] * u_row.x[i];
                        }
                        *address = entry;
                    }
#pragma unroll
                    for (int i = 0; i < kBlock; ++i) dot += across.x[i] * u_row.x[i];
                }
                add_rows(r, slab, across);
            }
            if (!active) continue;
#pragma unroll
            for (int j = 0; j < kBlock; ++j) {
                memory_.columns[warp_index() * padded_ + column + j] = down.x[j];
                dot += down.x[j] * u_column.x[j];
            }
        }
        const double total = warp_sum(static_cast<double>(dot));
        if (lane == 0) memory_.dots[warp_index()] = total;
    }

    // rows[4 r + i] is the sum of across.x[i] over the lanes, and over the slabs of the same warp. Halving
    // the number of sums a lane carries with each exchange takes 6 shuffles instead of 20.
    __device__ void add_rows(int r, int slab, const Quad<T>& across) {
        const int lane = lane_index();
        const bool high = (lane & 16) != 0;
        const T send_0 = high ? across.x[0] : across.x[2];
        const T send_1 = high ? across.x[1] : across.x[3];
        const T two_0 = (high ? across.x[2] : across.x[0]) + __shfl_xor_sync(kAllLanes, send_0, 16);
        const T two_1 = (high ? across.x[3] : across.x[1]) + __shfl_xor_sync(kAllLanes, send_1, 16);
        const bool odd = (lane & 8) != 0;
        T one = (odd ? two_1 : two_0) + __shfl_xor_sync(kAllLanes, odd ? two_0 : two_1, 8);
#pragma unroll
        for (int mask = 4; mask > 0; mask /= 2) one += __shfl_xor_sync(kAllLanes, one, mask);
        if (lane % 8 != 0) return;
        T* const sum = memory_.rows + kBlock * r + (high ? 2 : 0) + (odd ? 1 : 0);
        *sum = slab == 0 ? one : *sum + one;
    }

    // After the pass of row s: this block's share of the product, and row s - 1 where it is here, for all
    // peers.
    __device__ void publish(int s) {
        const int next = s - 1;
        const int turn = next % 2;
        for (int c = static_cast<int>(threadIdx.x); c <= next; c += kThreads) {
            T sum = c / kBlock % cluster_ == rank_ ? memory_.rows[c] : T{0};
            for (int w = 0; w < kWarps; ++w) sum += memory_.columns[w * padded_ + c];
            memory_.share[turn * padded_ + c] = sum;
        }
        if (next / kBlock % cluster_ == rank_) {
            const T* current = own_row(next);
            for (int c = static_cast<int>(threadIdx.x); c <= next; c += kThreads)
                memory_.next_row[turn * padded_ + c] = current[c];
        }
        if (threadIdx.x == 0) {
            double dot = 0;
            for (int w = 0; w < kWarps; ++w) dot += memory_.dots[w];
            memory_.sent[turn] = dot;
        }
        cluster_barrier();
    }

    const i64* layer_;
    int size_, padded_;
    unsigned cluster_, rank_;
    ReductionMemory<T, kPeers> memory_;
    double* tridiagonal_;
    T* a_;
};

template <class T, bool kPeers>
__global__ void __launch_bounds__(kThreads, 1)
    reduce_to_tridiagonal(const i64* __restrict__ layers, unsigned cluster) {
    const i64 matrix = blockIdx.x / cluster;
    Reduction<T, kPeers>(layers + matrix * kEigFields, cluster).run();
}

// Launch.

// Calls action(T, with peers) with the types the arguments name.
template <class Action>
auto with_kernel(bool is_double, unsigned cluster, Action action) {
    if (is_double)
        return cluster > 1 ? action(double{}, std::true_type{}) : action(double{}, std::false_type{});
    return cluster > 1 ? action(float{}, std::true_type{}) : action(float{}, std::false_type{});
}

}  // namespace

// Entry.

std::size_t tridiagonalise_shared_bytes(i64 m, bool is_double, unsigned cluster) {
    return with_kernel(is_double, cluster, [=](auto t, auto peers) {
        return ReductionMemory<decltype(t), decltype(peers)::value>::all_bytes(m, cluster);
    });
}

void tridiagonalise(Stream stream, const i64* layers, int count, bool is_double, i64 largest,
                    unsigned cluster) {
    const std::size_t shared_bytes = tridiagonalise_shared_bytes(largest, is_double, cluster);
    with_kernel(is_double, cluster, [=](auto t, auto peers) {
        launch("tridiagonalise", reduce_to_tridiagonal<decltype(t), decltype(peers)::value>, stream,
               Shape{i64{count} * cluster, kThreads, shared_bytes, cluster}, layers, cluster);
    });
}

}  // namespace slimfast::cuda
