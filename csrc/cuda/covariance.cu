// The products of covariance: tiles of the lower triangle, summed in chunks of the samples.
#include "covariance.hpp"
#include "elements.cuh"
#include "mma_instructions.cuh"
#include "reduce.cuh"
#include "triangle.cuh"

namespace slimfast::cuda {
namespace {

// Traits.

constexpr unsigned kThreads = 256;

template <class T, int kTile>
struct Tiling {
    static constexpr int kDepth = kTile == kCovarianceLargeTile || sizeof(T) == 8 ? 16 : 32;
    // Four more keep 16-byte rows, and spread over the banks what a warp reads and writes at a time.
    static constexpr int kPitch = kTile + 4;
    static constexpr int kLoads = kTile * kDepth / static_cast<int>(kThreads);
    static constexpr int kSums = kTile * kTile / static_cast<int>(kThreads);
    // Samples summed in one go; the sums of the chunks are added up on their own, so that the rounding error
    // grows with the root of their number, not of d.
    static constexpr int kChunk = sizeof(T) == 8 ? 512 : kCovarianceChunk;
    // Two stages and the sums of the chunks; in the end, in their place, the tile.
    static constexpr int kStages = 2 * kDepth * kPitch;
    static constexpr std::size_t kSharedBytes = sizeof(T) * (kStages + kTile * kTile);
    static_assert(kStages >= kTile, "the tile with its padding fits");
    static_assert(kCovarianceChunk % kDepth == 0, "a chunk is whole stages");
};

// For find_place: as many parts as the layer has splits.
constexpr i64 kSplits = 0;

// One tile of one layer's lower triangle, and one of the parts of its work.
struct Place {
    int layer;
    i64 tile, part;
    i64 tile_row, tile_column;
};

__device__ inline Place find_place(const i64* table, int count, i64 parts) {
    Place place;
    place.layer = find_segment(table, count, blockIdx.x);
    const i64* layer = table + count + 1 + i64{place.layer} * kCovFields;
    if (parts == kSplits) parts = layer[kCovSplits];
    const i64 local = blockIdx.x - table[place.layer];
    place.tile = local / parts;
    place.part = local % parts;
    const auto [row, column] = triangle_tile<double>(place.tile);
    place.tile_row = row;
    place.tile_column = column;
    return place;
}

// A thread's sums of one tile in float32: a 4 x 4 patch of every 64 x 64 quarter, 16 x 16 threads to each.
template <class T, int kTile>
struct Sums {
    static constexpr int kPatch = 4;
    static constexpr int kSpan = 16 * kPatch;
    static constexpr int kSide = kTile / kSpan * kPatch;
    T sum[kSide][kSide];

    __device__ T& at(int i) { return sum[i / kSide][i % kSide]; }
    __device__ static int row_of(int i) {
        return static_cast<int>(threadIdx.x) / 16 * kPatch + i / kSide / kPatch * kSpan + i / kSide % kPatch;
    }
    __device__ static int column_of(int i) {
        return static_cast<int>(threadIdx.x) % 16 * kPatch + i % kSide / kPatch * kSpan + i % kPatch;
    }

    __device__ void multiply(const T* left, const T* right) {
        using Sizes = Tiling<T, kTile>;
#pragma unroll 4
        for (int k = 0; k < Sizes::kDepth; ++k) {
            T a[kSide], b[kSide];
#pragma unroll
            for (int i = 0; i < kSide; ++i) {
                a[i] = left[k * Sizes::kPitch + row_of(i * kSide)];
                b[i] = right[k * Sizes::kPitch + column_of(i)];
            }
#pragma unroll
            for (int i = 0; i < kSide; ++i) {
#pragma unroll
                for (int j = 0; j < kSide; ++j) sum[i][j] += a[i] * b[j];
            }
        }
    }
};

// In float64: the tensor cores' fragments, 2 x 4 warps to a tile.
template <int kTile>
struct Sums<double, kTile> {
    static constexpr int kRowTiles = kTile / 2 / 16;
    static constexpr int kColumnTiles = kTile / 4 / 8;
    double sum[kRowTiles][kColumnTiles][4];

    __device__ double& at(int i) { return sum[i / 4 / kColumnTiles][i / 4 % kColumnTiles][i % 4]; }
    __device__ static int first_row() { return warp_index() / 4 * (kTile / 2) + lane_index() / 4; }
    __device__ static int first_column() { return warp_index() % 4 * (kTile / 4); }
    __device__ static int row_of(int i) { return first_row() + i / 4 / kColumnTiles * 16 + i % 4 / 2 * 8; }
    __device__ static int column_of(int i) {
        return first_column() + i / 4 % kColumnTiles * 8 + lane_index() % 4 * 2 + i % 2;
    }

    __device__ void multiply(const double* left, const double* right) {
        using Sizes = Tiling<double, kTile>;
        const int depth = lane_index() % 4;
        left += depth * Sizes::kPitch + first_row();
        right += depth * Sizes::kPitch + first_column() + lane_index() / 4;
#pragma unroll
        for (int k = 0; k < Sizes::kDepth; k += 8) {
            double a[kRowTiles][4], b[kColumnTiles][2];
#pragma unroll
            for (int i = 0; i < kRowTiles * 4; ++i)
                a[i / 4][i % 4] = left[(k + i % 4 / 2 * 4) * Sizes::kPitch + i / 4 * 16 + i % 2 * 8];
#pragma unroll
            for (int j = 0; j < kColumnTiles * 2; ++j)
                b[j / 2][j % 2] = right[(k + j % 2 * 4) * Sizes::kPitch + j / 2 * 8];
#pragma unroll
            for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
                for (int j = 0; j < kColumnTiles; ++j) multiply_add(sum[i][j], a[i], b[j]);
            }
        }
    }
};

// Operands on their way: a stage of 32 bytes' worth of samples, then of variables, to a thread's neighbours
// where samples follow each other in memory, so that sectors are read whole and no two lanes write one bank.
template <class T, int kTile>
struct Stage {
    using Sizes = Tiling<T, kTile>;
    static constexpr int kRun = 32 / static_cast<int>(sizeof(T));
    T values[Sizes::kLoads];

    __device__ static int variable_of(int i, bool along_samples) {
        const int element = static_cast<int>(threadIdx.x) + i * static_cast<int>(kThreads);
        return along_samples ? element / kRun % kTile : element % kTile;
    }
    __device__ static int depth_of(int i, bool along_samples) {
        const int element = static_cast<int>(threadIdx.x) + i * static_cast<int>(kThreads);
        return along_samples ? element % kRun + element / (kRun * kTile) * kRun : element / kTile;
    }

    // Variables first .. first + kTile of the layer, samples from `sample` on; zero beyond the end.
    template <class X>
    __device__ void fetch(const X* x, const i64* layer, const double* means, i64 first, i64 sample,
                          i64 sample_end) {
        const bool by_rows = layer[kCovByRows] != 0;
        const i64 variables = by_rows ? layer[kCovRows] : layer[kCovColumns];
        const i64 variable_stride = layer[by_rows ? kCovRowStride : kCovColumnStride];
        const i64 sample_stride = layer[by_rows ? kCovColumnStride : kCovRowStride];
        const bool along_samples = sample_stride <= variable_stride;
#pragma unroll
        for (int i = 0; i < Sizes::kLoads; ++i) {
            const i64 v = first + variable_of(i, along_samples);
            const i64 s = sample + depth_of(i, along_samples);
            values[i] = v < variables && s < sample_end ? centred(x[v * variable_stride + s * sample_stride],
                                                                  __ldg(means + (by_rows ? v : s)), T{})
                                                        : T{0};
        }
    }

    __device__ void put(T* shared, bool along_samples) const {
#pragma unroll
        for (int i = 0; i < Sizes::kLoads; ++i)
            shared[depth_of(i, along_samples) * Sizes::kPitch + variable_of(i, along_samples)] = values[i];
    }
};

// The sums of a tile into shared memory (kTile, kTile + 1).
template <class T, int kTile>
__device__ inline void put_sums(Sums<T, kTile>& sums, bool diagonal, T* shared) {
#pragma unroll
    for (int i = 0; i < Tiling<T, kTile>::kSums; ++i) {
        const int r = sums.row_of(i);
        const int c = sums.column_of(i);
        // A diagonal tile takes its upper half from its lower one: exact symmetry.
        if (diagonal && c > r) continue;
        shared[r * (kTile + 1) + c] = sums.at(i);
        if (diagonal) shared[c * (kTile + 1) + r] = sums.at(i);
    }
}

// Writes rows first .. first + rows of a tile and their mirror image, from shared memory (rows, kTile + 1),
// so that both are written along rows.
template <class T, int kTile>
__device__ void store_rows(const T* shared, int first, int rows, const i64* layer, const Place& place) {
    const i64 size = layer[kCovByRows] ? layer[kCovRows] : layer[kCovColumns];
    const i64 row = place.tile_row * kTile + first;
    const i64 column = place.tile_column * kTile;
    const double scale = scale_of(layer);
    const auto write = [&](auto* out) {
        using Out = std::remove_pointer_t<decltype(out)>;
        for (int e = static_cast<int>(threadIdx.x); e < rows * kTile; e += kThreads) {
            const int r = e / kTile;
            const int c = e % kTile;
            if (row + r < size && column + c < size)
                out[(row + r) * size + column + c] = static_cast<Out>(shared[r * (kTile + 1) + c] * scale);
        }
        if (place.tile_row == place.tile_column) return;
        for (int e = static_cast<int>(threadIdx.x); e < rows * kTile; e += kThreads) {
            const int c = e / rows;
            const int r = e % rows;
            if (row + r < size && column + c < size)
                out[(column + c) * size + row + r] = static_cast<Out>(shared[r * (kTile + 1) + c] * scale);
        }
    };
    if (layer[kCovOutIsDouble]) {
        write(reinterpret_cast<double*>(layer[kCovOut]));
    } else {
        write(reinterpret_cast<float*>(layer[kCovOut]));
    }
}

// Kernels.

template <class T, int kTile>
__global__ void __launch_bounds__(kThreads, 1)
    tiles_of(const i64* __restrict__ table, int count, const double* __restrict__ means, T* workspace) {
    using Sizes = Tiling<T, kTile>;
    auto* shared = reinterpret_cast<T*>(shared_memory());
    const Place place = find_place(table, count, kSplits);
    const i64* layer = table + count + 1 + i64{place.layer} * kCovFields;
    const bool by_rows = layer[kCovByRows] != 0;
    const i64 samples = by_rows ? layer[kCovColumns] : layer[kCovRows];
    const bool along_samples = layer[by_rows ? kCovColumnStride : kCovRowStride] <=
                               layer[by_rows ? kCovRowStride : kCovColumnStride];
    const i64 splits = layer[kCovSplits];
    const i64 chunks = ceil_div(samples, kCovarianceChunk);
    const i64 begin = chunks * place.part / splits * kCovarianceChunk;
    const i64 end = min(samples, chunks * (place.part + 1) / splits * kCovarianceChunk);
    const bool diagonal = place.tile_row == place.tile_column;
    T* const left = shared;
    T* const right = diagonal ? shared : shared + Sizes::kDepth * Sizes::kPitch;
    // Each thread's own.
    T* const total = shared + Sizes::kStages + threadIdx.x;

    Stage<T, kTile> next[2];
    Sums<T, kTile> sums;
#pragma unroll
    for (int i = 0; i < Sizes::kSums; ++i) total[i * kThreads] = sums.at(i) = 0;
    const auto fetch = [&](i64 sample) {
        with_elements(layer, [&](auto* x) {
            const double* mean = means + layer[kCovFirstRow];
            next[0].fetch(x, layer, mean, place.tile_row * kTile, sample, end);
            if (!diagonal) next[1].fetch(x, layer, mean, place.tile_column * kTile, sample, end);
        });
    };
    fetch(begin);
    for (i64 sample = begin; sample < end; sample += Sizes::kDepth) {
        next[0].put(left, along_samples);
        if (!diagonal) next[1].put(right, along_samples);
        __syncthreads();
        if (sample + Sizes::kDepth < end) fetch(sample + Sizes::kDepth);
        sums.multiply(left, right);
        if ((sample + Sizes::kDepth - begin) % Sizes::kChunk == 0) {
#pragma unroll
            for (int i = 0; i < Sizes::kSums; ++i) {
                total[i * kThreads] += sums.at(i);
                sums.at(i) = 0;
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < Sizes::kSums; ++i) sums.at(i) += total[i * kThreads];
    __syncthreads();
    put_sums(sums, diagonal, shared);
    __syncthreads();
    if (splits == 1) return store_rows<T, kTile>(shared, 0, kTile, layer, place);
    T* partial = workspace + layer[kCovPartial] + (place.tile * splits + place.part) * kTile * kTile;
    for (int e = static_cast<int>(threadIdx.x); e < kTile * kTile; e += kThreads) {
        partial[e] = shared[e / kTile * (kTile + 1) + e % kTile];
    }
}

template <class T, int kTile>
__global__ void __launch_bounds__(kThreads)
    finish_of(const i64* __restrict__ table, int count, const T* __restrict__ workspace) {
    auto* shared = reinterpret_cast<double*>(shared_memory());
    const Place place = find_place(table, count, kTile / kCovarianceFinishRows);
    const i64* layer = table + count + 1 + i64{place.layer} * kCovFields;
    const i64 splits = layer[kCovSplits];
    const int first = static_cast<int>(place.part) * kCovarianceFinishRows;
    const T* partial = workspace + layer[kCovPartial] + (place.tile * splits * kTile + first) * kTile;
    for (int e = static_cast<int>(threadIdx.x); e < kCovarianceFinishRows * kTile; e += kThreads) {
        double sum = 0;
        for (i64 s = 0; s < splits; ++s) sum += partial[s * kTile * kTile + e];
        shared[e / kTile * (kTile + 1) + e % kTile] = sum;
    }
    __syncthreads();
    store_rows<double, kTile>(shared, first, kCovarianceFinishRows, layer, place);
}

// Launch.

template <class T, int kTile>
void launch_tiles(Stream stream, const i64* table, int count, i64 blocks, const double* means,
                  void* workspace) {
    launch("covariance_tiles", tiles_of<T, kTile>, stream,
           Shape{blocks, kThreads, Tiling<T, kTile>::kSharedBytes}, table, count, means,
           static_cast<T*>(workspace));
}

template <class T, int kTile>
void launch_finish(Stream stream, const i64* table, int count, i64 blocks, const void* workspace) {
    launch("covariance_finish", finish_of<T, kTile>, stream,
           Shape{blocks, kThreads, sizeof(double) * kCovarianceFinishRows * (kTile + 1)}, table, count,
           static_cast<const T*>(workspace));
}

}  // namespace

// Entry.

void covariance_tiles(Stream stream, const i64* table, int count, i64 blocks, bool in_double, int tile,
                      const double* means, void* workspace) {
    const bool small = tile == kCovarianceSmallTile;
    const auto run =
        in_double
            ? (small ? launch_tiles<double, kCovarianceSmallTile>
                     : launch_tiles<double, kCovarianceLargeTile>)
            : (small ? launch_tiles<float, kCovarianceSmallTile> : launch_tiles<float, kCovarianceLargeTile>);
    run(stream, table, count, blocks, means, workspace);
}

void covariance_finish(Stream stream, const i64* table, int count, i64 blocks, bool in_double, int tile,
                       const void* workspace) {
    const bool small = tile == kCovarianceSmallTile;
    const auto run = in_double ? (small ? launch_finish<double, kCovarianceSmallTile>
                                        : launch_finish<double, kCovarianceLargeTile>)
                               : (small ? launch_finish<float, kCovarianceSmallTile>
                                        : launch_finish<float, kCovarianceLargeTile>);
    run(stream, table, count, blocks, workspace);
}

std::size_t covariance_shared_bytes(bool in_double, int tile) {
    const bool small = tile == kCovarianceSmallTile;
    if (in_double)
        return small ? Tiling<double, kCovarianceSmallTile>::kSharedBytes
                     : Tiling<double, kCovarianceLargeTile>::kSharedBytes;
    return small ? Tiling<float, kCovarianceSmallTile>::kSharedBytes
                 : Tiling<float, kCovarianceLargeTile>::kSharedBytes;
}

}  // namespace slimfast::cuda
