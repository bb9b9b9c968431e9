// The products of covariance: tiles of the lower triangle, summed in chunks of the samples.
#include "covariance.hpp"
#include "elements.cuh"
#include "product_tile.cuh"
#include "triangle.cuh"

namespace slimfast::cuda {
namespace {

constexpr unsigned kThreads = kTileThreads;

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

// Reads variables first .. first + kTile of the layer, samples from `sample` on; zero beyond the end.
template <class T, int kTile, class X>
__device__ inline void fetch_layer(Stage<T, kTile>& stage, const X* x, const i64* layer, const double* means,
                                   i64 first, i64 sample, i64 sample_end) {
    const bool by_rows = layer[kCovByRows] != 0;
    const i64 variables = by_rows ? layer[kCovRows] : layer[kCovColumns];
    const i64 variable_stride = layer[by_rows ? kCovRowStride : kCovColumnStride];
    const i64 sample_stride = layer[by_rows ? kCovColumnStride : kCovRowStride];
    stage.fetch(sample_stride <= variable_stride, [&](int variable, int depth) {
        const i64 v = first + variable;
        const i64 s = sample + depth;
        return v < variables && s < sample_end ? centred(x[v * variable_stride + s * sample_stride],
                                                         __ldg(means + (by_rows ? v : s)), T{})
                                               : T{0};
    });
}

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
    // Each thread's own.
    T* const total = shared + Sizes::kStages + threadIdx.x;

    Stage<T, kTile> next[2];
    Sums<T, kTile> sums;
    const auto fetch = [&](i64 sample) {
        with_elements(layer, [&](auto* x) {
            const double* mean = means + layer[kCovFirstRow];
            fetch_layer(next[0], x, layer, mean, place.tile_row * kTile, sample, end);
            if (!diagonal) fetch_layer(next[1], x, layer, mean, place.tile_column * kTile, sample, end);
        });
    };
    sum_stages<Sizes::kChunk>(sums, next, {along_samples, along_samples}, diagonal, begin, end, shared, total,
                              fetch, [](i64) {});
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
