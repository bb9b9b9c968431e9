#include "covariance.hpp"
#include "reduce.cuh"

namespace slimfast::cuda {
namespace {

// Traits: 256 threads as 16 x 16, each with a 4 x 4 patch of every 64 x 64 quarter of the tile.

constexpr unsigned kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kGrid = 16;
constexpr int kPatch = 4;

template <class T, int kTile>
struct Tiling {
    static constexpr int kGroups = kTile / (kGrid * kPatch);
    static constexpr int kDepth = kTile == kCovarianceLargeTile || sizeof(T) == 8 ? 16 : 32;
    // One patch of padding keeps 16-byte rows and spreads a column over the banks.
    static constexpr int kPitch = kTile + kPatch;
    static constexpr int kLoads = kTile * kDepth / static_cast<int>(kThreads);
    static constexpr std::size_t kSharedBytes =
        sizeof(T) * (2 * kDepth * kPitch > kTile * (kTile + 1) ? 2 * kDepth * kPitch : kTile * (kTile + 1));
    static_assert(kCovarianceChunk % kDepth == 0, "a chunk is whole stages");
};

__device__ inline double to_double(float x) { return x; }
__device__ inline double to_double(double x) { return x; }
__device__ inline double to_double(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline double to_double(__half x) { return __half2float(x); }
__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(double x) { return static_cast<float>(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }

// x - mean. In float32 the mean comes in two parts, so that a mean far larger than the deviations costs no
// digits.
template <class X>
__device__ inline float centred(X x, double mean, float) {
    const float high = static_cast<float>(mean);
    return (to_float(x) - high) - static_cast<float>(mean - high);
}
template <class X>
__device__ inline double centred(X x, double mean, double) {
    return to_double(x) - mean;
}

// Calls action(pointer) with the layer's data in its own type.
template <class Action>
__device__ inline void with_elements(const std::int64_t* layer, Action action) {
    switch (layer[kCovXType]) {
        case kFloat32:
            return action(reinterpret_cast<const float*>(layer[kCovX]));
        case kFloat64:
            return action(reinterpret_cast<const double*>(layer[kCovX]));
        case kBfloat16:
            return action(reinterpret_cast<const __nv_bfloat16*>(layer[kCovX]));
        default:
            return action(reinterpret_cast<const __half*>(layer[kCovX]));
    }
}

// One tile of one layer's lower triangle, and one of the splits of its samples.
struct Place {
    int layer;
    std::int64_t tile, split;
    std::int64_t tile_row, tile_column;
};

__device__ inline Place find_place(const std::int64_t* table, int count, bool with_splits) {
    Place place;
    place.layer = find_segment(table, count, blockIdx.x);
    const std::int64_t* layer = table + count + 1 + std::int64_t{place.layer} * kCovFields;
    const std::int64_t splits = with_splits ? layer[kCovSplits] : 1;
    const std::int64_t local = blockIdx.x - table[place.layer];
    place.tile = local / splits;
    place.split = local % splits;
    // tile = row (row + 1) / 2 + column; the root is corrected for its rounding.
    auto row = static_cast<std::int64_t>((sqrt(8.0 * static_cast<double>(place.tile) + 1.0) - 1.0) / 2.0);
    while (row * (row + 1) / 2 > place.tile) --row;
    while ((row + 1) * (row + 2) / 2 <= place.tile) ++row;
    place.tile_row = row;
    place.tile_column = place.tile - row * (row + 1) / 2;
    return place;
}

// Kernels.

// A warp to each row where rows are contiguous; else a lane to each row, and the warps share its length.
__global__ void __launch_bounds__(kThreads)
    moments(const std::int64_t* __restrict__ table, int count, double* __restrict__ means,
            double* __restrict__ squares) {
    auto* partial = reinterpret_cast<double*>(shared_memory());
    const int index = find_segment(table, count, blockIdx.x);
    const std::int64_t* layer = table + count + 1 + std::int64_t{index} * kCovFields;
    const std::int64_t first = (blockIdx.x - table[index]) * kMomentRows;
    const std::int64_t rows = min(std::int64_t{kMomentRows}, layer[kCovRows] - first);
    const std::int64_t length = layer[kCovColumns];
    const std::int64_t row_stride = layer[kCovRowStride];
    const std::int64_t stride = layer[kCovColumnStride];
    double* mean_out = means + layer[kCovFirstRow] + first;
    double* square_out = squares + layer[kCovFirstRow] + first;
    const int lane = lane_index();
    const int warp = warp_index();
    with_elements(layer, [&](auto* x) {
        x += first * row_stride;
        if (stride <= row_stride) {
            for (int r = warp; r < rows; r += kWarps) {
                double sum = 0;
                for (std::int64_t i = lane; i < length; i += 32)
                    sum += to_double(x[r * row_stride + i * stride]);
                const double mean = warp_sum(sum) / static_cast<double>(length);
                double square = 0;
                for (std::int64_t i = lane; i < length; i += 32) {
                    const double deviation = to_double(x[r * row_stride + i * stride]) - mean;
                    square += deviation * deviation;
                }
                square = warp_sum(square);
                if (lane == 0) {
                    mean_out[r] = mean;
                    square_out[r] = square;
                }
            }
            return;
        }
        // Two passes over the length: the sum, then the squares about the mean.
        double mean = 0;
        for (int pass = 0; pass < 2; ++pass) {
            double sum = 0;
            for (std::int64_t i = warp; lane < rows && i < length; i += kWarps) {
                const double value = to_double(x[lane * row_stride + i * stride]) - mean;
                sum += pass == 0 ? value : value * value;
            }
            partial[warp * 32 + lane] = sum;
            __syncthreads();
            double total = 0;
            for (int w = 0; w < kWarps; ++w) total += partial[w * 32 + lane];
            __syncthreads();
            if (pass == 0) mean = total / static_cast<double>(length);
            if (warp == 0 && lane < rows)
                (pass == 0 ? mean_out : square_out)[lane] = pass == 0 ? mean : total;
        }
    });
}

__global__ void __launch_bounds__(kThreads)
    traces_of(const std::int64_t* __restrict__ layers, const double* __restrict__ squares, double* traces) {
    const std::int64_t* layer = layers + std::int64_t{blockIdx.x} * kCovFields;
    double sum = 0;
    for (std::int64_t r = threadIdx.x; r < layer[kCovRows]; r += kThreads)
        sum += squares[layer[kCovFirstRow] + r];
    sum = block_sum(sum, reinterpret_cast<double*>(shared_memory()));
    if (threadIdx.x == 0)
        traces[blockIdx.x] = sum / static_cast<double>(max(layer[kCovColumns] - 1, std::int64_t{1}));
}

// The working set of one block: loads of the next stage in registers, sums of the patch.
template <class T, int kTile>
struct Tile {
    using Sizes = Tiling<T, kTile>;
    T next[2][Sizes::kLoads];
    T sum[Sizes::kGroups * kPatch][Sizes::kGroups * kPatch];

    // Variables first .. first + kTile of the layer, samples from `sample` on; zero beyond the end.
    template <class X>
    __device__ void fetch(T* into, const X* x, const std::int64_t* layer, const double* means,
                          std::int64_t first, std::int64_t sample, std::int64_t sample_end) {
        const bool by_rows = layer[kCovByRows] != 0;
        const std::int64_t variables = by_rows ? layer[kCovRows] : layer[kCovColumns];
        const std::int64_t variable_stride = layer[by_rows ? kCovRowStride : kCovColumnStride];
        const std::int64_t sample_stride = layer[by_rows ? kCovColumnStride : kCovRowStride];
        const bool along_samples = sample_stride <= variable_stride;
#pragma unroll
        for (int i = 0; i < Sizes::kLoads; ++i) {
            const int element = static_cast<int>(threadIdx.x + i * kThreads);
            const std::int64_t v = first + variable_of(element, along_samples);
            const std::int64_t s = sample + depth_of(element, along_samples);
            into[i] = v < variables && s < sample_end ? centred(x[v * variable_stride + s * sample_stride],
                                                                __ldg(means + (by_rows ? v : s)), T{})
                                                      : T{0};
        }
    }

    __device__ void stage(const T* from, T* shared, bool along_samples) const {
#pragma unroll
        for (int i = 0; i < Sizes::kLoads; ++i) {
            const int element = static_cast<int>(threadIdx.x + i * kThreads);
            shared[depth_of(element, along_samples) * Sizes::kPitch + variable_of(element, along_samples)] =
                from[i];
        }
    }

    // Neighbouring threads read neighbouring memory, whichever stride is the shorter.
    __device__ static int variable_of(int element, bool along_samples) {
        return along_samples ? element / Sizes::kDepth : element % kTile;
    }
    __device__ static int depth_of(int element, bool along_samples) {
        return along_samples ? element % Sizes::kDepth : element / kTile;
    }

    __device__ void multiply(const T* left, const T* right) {
        const int row = static_cast<int>(threadIdx.x) / kGrid * kPatch;
        const int column = static_cast<int>(threadIdx.x) % kGrid * kPatch;
#pragma unroll 4
        for (int k = 0; k < Sizes::kDepth; ++k) {
            T a[Sizes::kGroups * kPatch], b[Sizes::kGroups * kPatch];
#pragma unroll
            for (int i = 0; i < Sizes::kGroups * kPatch; ++i) {
                a[i] = left[k * Sizes::kPitch + row + i / kPatch * kGrid * kPatch + i % kPatch];
                b[i] = right[k * Sizes::kPitch + column + i / kPatch * kGrid * kPatch + i % kPatch];
            }
#pragma unroll
            for (int i = 0; i < Sizes::kGroups * kPatch; ++i) {
#pragma unroll
                for (int j = 0; j < Sizes::kGroups * kPatch; ++j) sum[i][j] += a[i] * b[j];
            }
        }
    }
};

// Writes a tile and its mirror image, from shared memory (kTile, kTile + 1), so that both are written along
// rows.
template <class T, int kTile>
__device__ void store_tile(const T* shared, const std::int64_t* layer, const Place& place, double scale) {
    const std::int64_t size = layer[kCovByRows] ? layer[kCovRows] : layer[kCovColumns];
    const std::int64_t row = place.tile_row * kTile;
    const std::int64_t column = place.tile_column * kTile;
    const auto write = [&](auto* out) {
        using Out = std::remove_pointer_t<decltype(out)>;
        for (int e = static_cast<int>(threadIdx.x); e < kTile * kTile; e += kThreads) {
            const int r = e / kTile;
            const int c = e % kTile;
            if (row + r < size && column + c < size) {
                // The diagonal tile takes its upper half from its lower one: exact symmetry.
                const bool flip = row == column && c > r;
                const T value = flip ? shared[c * (kTile + 1) + r] : shared[r * (kTile + 1) + c];
                out[(row + r) * size + column + c] = static_cast<Out>(value * scale);
            }
            if (row != column && column + r < size && row + c < size) {
                out[(column + r) * size + row + c] = static_cast<Out>(shared[c * (kTile + 1) + r] * scale);
            }
        }
    };
    if (layer[kCovOutIsDouble]) {
        write(reinterpret_cast<double*>(layer[kCovOut]));
    } else {
        write(reinterpret_cast<float*>(layer[kCovOut]));
    }
}

__device__ inline double scale_of(const std::int64_t* layer) {
    return 1.0 / static_cast<double>(max(layer[kCovColumns] - 1, std::int64_t{1}));
}

template <class T, int kTile>
__global__ void __launch_bounds__(kThreads, 1) tiles_of(const std::int64_t* __restrict__ table, int count,
                                                        const double* __restrict__ means, T* workspace) {
    using Sizes = Tiling<T, kTile>;
    constexpr int kSide = Sizes::kGroups * kPatch;
    auto* shared = reinterpret_cast<T*>(shared_memory());
    const Place place = find_place(table, count, true);
    const std::int64_t* layer = table + count + 1 + std::int64_t{place.layer} * kCovFields;
    const bool by_rows = layer[kCovByRows] != 0;
    const std::int64_t samples = by_rows ? layer[kCovColumns] : layer[kCovRows];
    const bool along_samples = layer[by_rows ? kCovColumnStride : kCovRowStride] <=
                               layer[by_rows ? kCovRowStride : kCovColumnStride];
    const std::int64_t splits = layer[kCovSplits];
    const std::int64_t chunks = (samples + kCovarianceChunk - 1) / kCovarianceChunk;
    const std::int64_t begin = chunks * place.split / splits * kCovarianceChunk;
    const std::int64_t end = min(samples, chunks * (place.split + 1) / splits * kCovarianceChunk);
    const bool diagonal = place.tile_row == place.tile_column;
    T* const left = shared;
    T* const right = diagonal ? shared : shared + Sizes::kDepth * Sizes::kPitch;

    Tile<T, kTile> tile;
    T total[kSide][kSide];
#pragma unroll
    for (int i = 0; i < kSide * kSide; ++i) {
        total[i / kSide][i % kSide] = 0;
        tile.sum[i / kSide][i % kSide] = 0;
    }
    const auto fetch = [&](std::int64_t sample) {
        with_elements(layer, [&](auto* x) {
            tile.fetch(tile.next[0], x, layer, means + layer[kCovFirstRow], place.tile_row * kTile, sample,
                       end);
            if (!diagonal) {
                tile.fetch(tile.next[1], x, layer, means + layer[kCovFirstRow], place.tile_column * kTile,
                           sample, end);
            }
        });
    };
    fetch(begin);
    for (std::int64_t sample = begin; sample < end; sample += Sizes::kDepth) {
        tile.stage(tile.next[0], left, along_samples);
        if (!diagonal) tile.stage(tile.next[1], right, along_samples);
        __syncthreads();
        if (sample + Sizes::kDepth < end) fetch(sample + Sizes::kDepth);
        tile.multiply(left, right);
        if ((sample + Sizes::kDepth - begin) % kCovarianceChunk == 0 || sample + Sizes::kDepth >= end) {
            // Chunks are summed apart: the rounding error grows with the root of their number, not of d.
#pragma unroll
            for (int i = 0; i < kSide * kSide; ++i) {
                total[i / kSide][i % kSide] += tile.sum[i / kSide][i % kSide];
                tile.sum[i / kSide][i % kSide] = 0;
            }
        }
        __syncthreads();
    }

    const int row = static_cast<int>(threadIdx.x) / kGrid * kPatch;
    const int column = static_cast<int>(threadIdx.x) % kGrid * kPatch;
#pragma unroll
    for (int i = 0; i < kSide * kSide; ++i) {
        const int r = i / kSide;
        const int c = i % kSide;
        shared[(row + r / kPatch * kGrid * kPatch + r % kPatch) * (kTile + 1) + column +
               c / kPatch * kGrid * kPatch + c % kPatch] = total[r][c];
    }
    __syncthreads();
    if (splits == 1) return store_tile<T, kTile>(shared, layer, place, scale_of(layer));
    T* partial = workspace + layer[kCovPartial] + (place.tile * splits + place.split) * kTile * kTile;
    for (int e = static_cast<int>(threadIdx.x); e < kTile * kTile; e += kThreads) {
        partial[e] = shared[e / kTile * (kTile + 1) + e % kTile];
    }
}

template <class T, int kTile>
__global__ void __launch_bounds__(kThreads, 1)
    finish_of(const std::int64_t* __restrict__ table, int count, const T* __restrict__ workspace) {
    auto* shared = reinterpret_cast<double*>(shared_memory());
    const Place place = find_place(table, count, false);
    const std::int64_t* layer = table + count + 1 + std::int64_t{place.layer} * kCovFields;
    const std::int64_t splits = layer[kCovSplits];
    const T* partial = workspace + layer[kCovPartial] + place.tile * splits * kTile * kTile;
    for (int e = static_cast<int>(threadIdx.x); e < kTile * kTile; e += kThreads) {
        double sum = 0;
        for (std::int64_t s = 0; s < splits; ++s) sum += partial[s * kTile * kTile + e];
        shared[e / kTile * (kTile + 1) + e % kTile] = sum;
    }
    __syncthreads();
    store_tile<double, kTile>(shared, layer, place, scale_of(layer));
}

// Launch.

template <class T, int kTile>
void launch_tiles(Stream stream, const std::int64_t* table, int count, std::int64_t blocks,
                  const double* means, void* workspace) {
    launch("covariance_tiles", tiles_of<T, kTile>, stream,
           Shape{blocks, kThreads, Tiling<T, kTile>::kSharedBytes}, table, count, means,
           static_cast<T*>(workspace));
}

template <class T, int kTile>
void launch_finish(Stream stream, const std::int64_t* table, int count, std::int64_t blocks,
                   const void* workspace) {
    launch("covariance_finish", finish_of<T, kTile>, stream,
           Shape{blocks, kThreads, sizeof(double) * kTile * (kTile + 1)}, table, count,
           static_cast<const T*>(workspace));
}

}  // namespace

// Entry.

void row_moments(Stream stream, const std::int64_t* table, int count, std::int64_t blocks, double* means,
                 double* squares) {
    launch("row_moments", moments, stream, Shape{blocks, kThreads, kThreads * sizeof(double)}, table, count,
           means, squares);
}

void covariance_traces(Stream stream, const std::int64_t* layers, int count, const double* squares,
                       double* traces) {
    launch("covariance_traces", traces_of, stream, Shape{count, kThreads, kWarps * sizeof(double)}, layers,
           squares, traces);
}

void covariance_tiles(Stream stream, const std::int64_t* table, int count, std::int64_t blocks,
                      bool in_double, int tile, const double* means, void* workspace) {
    if (in_double)
        return launch_tiles<double, kCovarianceSmallTile>(stream, table, count, blocks, means, workspace);
    if (tile == kCovarianceSmallTile) {
        return launch_tiles<float, kCovarianceSmallTile>(stream, table, count, blocks, means, workspace);
    }
    launch_tiles<float, kCovarianceLargeTile>(stream, table, count, blocks, means, workspace);
}

void covariance_finish(Stream stream, const std::int64_t* table, int count, std::int64_t blocks,
                       bool in_double, int tile, const void* workspace) {
    if (in_double)
        return launch_finish<double, kCovarianceSmallTile>(stream, table, count, blocks, workspace);
    if (tile == kCovarianceSmallTile) {
        return launch_finish<float, kCovarianceSmallTile>(stream, table, count, blocks, workspace);
    }
    launch_finish<float, kCovarianceLargeTile>(stream, table, count, blocks, workspace);
}

}  // namespace slimfast::cuda
