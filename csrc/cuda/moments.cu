// Streaming moments: means of the call's positions, products about them in tiles, and the join with what was
// there before (Chan, Golub and LeVeque, The American Statistician 37, 1983).
#include "moments.hpp"
#include "positions.cuh"
#include "product_tile.cuh"
#include "triangle.cuh"

namespace slimfast::cuda {
namespace {

constexpr unsigned kThreads = kTileThreads;
constexpr int kWarps = kThreads / 32;
// Positions whose products are summed in one go: half of a covariance's, because batches are short and have
// few such sums whose errors could cancel.
constexpr int kChain = kCovarianceChunk / 2;

// Which variables and positions a block works on.

struct Part {
    const i64* layer;
    i64 index, part;
};

// The block's layer; of `parts` parts to each index, or as many as the layer has splits.
__device__ inline Part find_part(const i64* table, int count, i64 parts) {
    const int found = find_segment(table, count, blockIdx.x);
    const i64* layer = table + count + 1 + i64{found} * kMomentFields;
    if (parts == 0) parts = layer[kMomentSplits];
    const i64 local = blockIdx.x - table[found];
    return {layer, local / parts, local % parts};
}

__device__ inline i64 positions_of(const i64* layer) {
    const i64* outputs = layer + kMomentOutputs;
    return outputs[0] * outputs[1] * outputs[2] * outputs[3];
}

struct Range {
    i64 begin, end;
};

__device__ inline Range split_of(const i64* layer, i64 split) {
    const i64 positions = positions_of(layer), splits = layer[kMomentSplits];
    const i64 chunks = ceil_div(positions, kCovarianceChunk);
    return {chunks * split / splits * kCovarianceChunk,
            min(positions, chunks * (split + 1) / splits * kCovarianceChunk)};
}

// Blocks of `size` variables, those of x before those of y.
struct VariableBlock {
    const i64* operand;
    i64 first;
    bool of_y;
};

__device__ inline VariableBlock variable_block(const i64* layer, i64 index, int size) {
    const i64 of_x = ceil_div(layer[kMomentX + kOperandVariables], size);
    const bool of_y = index >= of_x;
    return {layer + (of_y ? kMomentY : kMomentX), (index - (of_y ? of_x : 0)) * size, of_y};
}

// A tile: of the lower triangle of a bundle of groups, or of a rectangle.
struct Tile {
    i64 row, row_end, column, column_end;
    bool diagonal;
};

__device__ inline Tile tile_of(const i64* layer, i64 number, int size) {
    const i64 rows = layer[kMomentX + kOperandVariables];
    if (!layer[kMomentSymmetric]) {
        const i64 columns = layer[kMomentY + kOperandVariables], across = ceil_div(columns, size);
        return {number / across * size, rows, number % across * size, columns, false};
    }
    const i64 side = ceil_div(layer[kMomentBundle], size);
    const i64 first = number / triangle_size(side) * layer[kMomentBundle];
    const auto [row, column] = triangle_tile<double>(number % triangle_size(side));
    const i64 end = min(first + layer[kMomentBundle], rows);
    return {first + row * size, end, first + column * size, end, row == column};
}

// How many positions count in this call.
__device__ inline i64 counted(const i64* layer) {
    const auto* by_mask = reinterpret_cast<const i64*>(layer[kMomentCounted]);
    return by_mask == nullptr ? positions_of(layer) : *by_mask;
}

// Whether positions are closer to each other in memory than variables are.
__device__ inline bool is_along_positions(const i64* layer, const i64* operand) {
    i64 stride = 0;
    for (int d = kPositionDims - 1; d >= 0 && stride == 0; --d) {
        if (layer[kMomentOutputs + d] == 1) continue;
        stride = operand[kOperandStrides + d] * (d > 0 ? layer[kMomentStep + d - 1] : 1);
    }
    return stride <= operand[kOperandChannelStride];
}

// Kernels.

struct SumMemory {
    VariableTable<double, kMeanVariables> variables;
    PositionTable<kThreads> positions;
    double warps[kWarps][kMeanVariables];
};

// Lanes lie along what is close in memory, the warps across it.
__global__ void __launch_bounds__(kThreads)
    sums_of(const i64* __restrict__ table, int count, double* __restrict__ sums) {
    auto& shared = *reinterpret_cast<SumMemory*>(shared_memory());
    const Part part = find_part(table, count, 0);
    const i64* layer = part.layer;
    const VariableBlock block = variable_block(layer, part.index, kMeanVariables);
    const i64 variables = block.operand[kOperandVariables];
    const bool along = is_along_positions(layer, block.operand);
    const Range range = split_of(layer, part.part);
    const Image image(layer);
    const int lane = lane_index(), warp = warp_index();
    if (warp == 0)
        locate_variable(shared.variables, lane, layer, block.operand, block.first + lane, variables, nullptr);
    constexpr int kEach = kMeanVariables / kWarps;
    double mine[kEach] = {};
    for (i64 first = range.begin; first < range.end; first += kThreads) {
        locate_position(shared.positions, static_cast<int>(threadIdx.x), layer, first + threadIdx.x,
                        range.end);
        __syncthreads();
        with_elements(block.operand, [&](auto* x) {
            const auto at = [&](int v, int p) {
                return centred_element<double>(x, image, shared.variables, v, shared.positions, p,
                                               block.of_y);
            };
            for (int step = 0; step < kWarps; ++step) {
#pragma unroll
                for (int i = 0; i < kEach; ++i)
                    mine[i] += along ? at(warp + kWarps * i, step * 32 + lane)
                                     : at(lane, step * 32 + warp + kWarps * i);
            }
        });
        __syncthreads();
    }
    double* out = sums + block.operand[kOperandSums] + part.part * variables + block.first;
    if (along) {
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
            const double sum = warp_sum(mine[i]);
            if (lane == 0 && block.first + warp + kWarps * i < variables) out[warp + kWarps * i] = sum;
        }
        return;
    }
    double sum = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) sum += mine[i];
    shared.warps[warp][lane] = sum;
    __syncthreads();
    if (warp != 0 || block.first + lane >= variables) return;
    sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += shared.warps[w][lane];
    out[lane] = sum;
}

__global__ void __launch_bounds__(kThreads)
    join_means(const i64* __restrict__ table, int count, const double* __restrict__ sums, double* means,
               double* apart) {
    const Part part = find_part(table, count, 1);
    const i64* layer = part.layer;
    const VariableBlock block = variable_block(layer, part.index, kJoinVariables);
    const i64 variables = block.operand[kOperandVariables];
    const i64 v = block.first + threadIdx.x;
    if (v >= variables) return;
    const double* split_sums = sums + block.operand[kOperandSums] + v;
    double sum = 0;
    for (i64 split = 0; split < layer[kMomentSplits]; ++split) sum += split_sums[split * variables];
    const i64 here = counted(layer);
    const double mean = here == 0 ? 0.0 : sum / static_cast<double>(here);
    auto* before = reinterpret_cast<double*>(block.operand[kOperandMean]) + v;
    const double distance = here == 0 ? 0.0 : mean - *before;
    means[block.operand[kOperandFirst] + v] = mean;
    apart[block.operand[kOperandFirst] + v] = distance;
    if (here > 0)
        *before += distance * (static_cast<double>(here) / static_cast<double>(here + layer[kMomentEarlier]));
}

template <class T, int kTile>
struct TileMemory {
    T stages[Tiling<T, kTile>::kStages];
    double total[kTile * kTile];
    VariableTable<T, kTile> variables[2];
    // In turns: one chunk's is read while the next one's is written.
    PositionTable<kCovarianceChunk> positions[2];
};

template <class T, int kTile>
__global__ void __launch_bounds__(kThreads, 1)
    products_of(const i64* __restrict__ table, int count, const double* __restrict__ means,
                double* __restrict__ workspace) {
    using Sizes = Tiling<T, kTile>;
    auto& shared = *reinterpret_cast<TileMemory<T, kTile>*>(shared_memory());
    const Part part = find_part(table, count, 0);
    const i64* layer = part.layer;
    const Tile tile = tile_of(layer, part.index, kTile);
    const Range range = split_of(layer, part.part);
    const Image image(layer);
    const bool symmetric = layer[kMomentSymmetric] != 0;
    const i64* const x = layer + kMomentX;
    const i64* const y = symmetric ? x : layer + kMomentY;
    const int thread = static_cast<int>(threadIdx.x);
    for (int i = thread; i < 2 * kTile; i += kThreads) {
        const bool column = i >= kTile;
        locate_variable(shared.variables[column], i % kTile, layer, column ? y : x,
                        (column ? tile.column : tile.row) + i % kTile,
                        column ? tile.column_end : tile.row_end, means);
    }
    const auto locate = [&](i64 first) {
        if (thread < kCovarianceChunk)
            locate_position(shared.positions[first / kCovarianceChunk % 2], thread, layer, first + thread,
                            range.end);
    };
    locate(range.begin);
    __syncthreads();

    const bool along[2] = {is_along_positions(layer, x), is_along_positions(layer, y)};
    Stage<T, kTile> next[2];
    Sums<T, kTile> sums;
    const auto fetch = [&](i64 sample) {
        const auto& positions = shared.positions[sample / kCovarianceChunk % 2];
        const int first = static_cast<int>(sample % kCovarianceChunk);
        const auto read = [&](int side, const i64* operand) {
            with_elements(operand, [&](auto* data) {
                next[side].fetch(along[side], [&](int variable, int depth) {
                    return centred_element<T>(data, image, shared.variables[side], variable, positions,
                                              first + depth, side == 1 && !symmetric);
                });
            });
        };
        read(0, x);
        if (!tile.diagonal) read(1, y);
    };
    double* const total = shared.total + thread;
    sum_stages<kChain>(sums, next, along, tile.diagonal, range.begin, range.end, shared.stages, total, fetch,
                       [&](i64 sample) { locate(sample + kCovarianceChunk); });
    const i64 splits = layer[kMomentSplits];
    double* partial = workspace + layer[kMomentPartial] + (part.index * splits + part.part) * kTile * kTile;
#pragma unroll
    for (int i = 0; i < Sizes::kSums; ++i)
        partial[sums.row_of(i) * kTile + sums.column_of(i)] = sums.at(i) + total[i * kThreads];
}

template <int kTile>
__global__ void __launch_bounds__(kThreads)
    finish_moments(const i64* __restrict__ table, int count, const double* __restrict__ apart,
                   const double* __restrict__ workspace) {
    const Part part = find_part(table, count, kTile / kMomentFinishRows);
    const i64* layer = part.layer;
    const Tile tile = tile_of(layer, part.index, kTile);
    const bool symmetric = layer[kMomentSymmetric] != 0;
    const i64 first = part.part * kMomentFinishRows, splits = layer[kMomentSplits];
    const double* partial = workspace + layer[kMomentPartial] + (part.index * splits * kTile + first) * kTile;
    const double* of_x = apart + layer[kMomentX + kOperandFirst];
    const double* of_y = symmetric ? of_x : apart + layer[kMomentY + kOperandFirst];
    const auto here = static_cast<double>(counted(layer));
    const auto before = static_cast<double>(layer[kMomentEarlier]);
    const double weight = here > 0 ? before * (here / (before + here)) : 0.0;
    const i64 group = layer[kMomentGroup], columns = layer[kMomentY + kOperandVariables];
    auto* products = reinterpret_cast<double*>(layer[kMomentProducts]);
    for (int e = static_cast<int>(threadIdx.x); e < kMomentFinishRows * kTile; e += kThreads) {
        const i64 row = tile.row + first + e / kTile, column = tile.column + e % kTile;
        if (row >= tile.row_end || column >= tile.column_end) continue;
        if (symmetric && (column > row || column / group != row / group)) continue;
        double sum = 0;
        for (i64 s = 0; s < splits; ++s) sum += partial[s * kTile * kTile + e];
        sum += of_x[row] * of_y[column] * weight;
        if (!symmetric) {
            products[row * columns + column] += sum;
            continue;
        }
        // The upper half is the lower one's mirror image: exact symmetry.
        double* own = products + row / group * group * group;
        const i64 r = row % group, c = column % group;
        own[r * group + c] = own[c * group + r] = own[r * group + c] + sum;
    }
}

// Launch.

template <class T, int kTile>
void launch_products(Stream stream, const i64* table, int count, i64 blocks, const double* means,
                     double* workspace) {
    launch("moment_tiles", products_of<T, kTile>, stream,
           Shape{blocks, kThreads, sizeof(TileMemory<T, kTile>)}, table, count, means, workspace);
}

}  // namespace

// Entry.

void moment_sums(Stream stream, const i64* table, int count, i64 blocks, double* sums) {
    launch("moment_sums", sums_of, stream, Shape{blocks, kThreads, sizeof(SumMemory)}, table, count, sums);
}

void moment_means(Stream stream, const i64* table, int count, i64 blocks, const double* sums, double* means,
                  double* apart) {
    launch("moment_means", join_means, stream, Shape{blocks, kThreads}, table, count, sums, means, apart);
}

void moment_tiles(Stream stream, const i64* table, int count, i64 blocks, bool in_double, int tile,
                  const double* means, double* workspace) {
    const bool small = tile == kCovarianceSmallTile;
    const auto run = in_double ? launch_products<double, kCovarianceSmallTile>
                     : small   ? launch_products<float, kCovarianceSmallTile>
                               : launch_products<float, kCovarianceLargeTile>;
    run(stream, table, count, blocks, means, workspace);
}

void moment_finish(Stream stream, const i64* table, int count, i64 blocks, int tile, const double* apart,
                   const double* workspace) {
    const auto kernel = tile == kCovarianceSmallTile ? finish_moments<kCovarianceSmallTile>
                                                     : finish_moments<kCovarianceLargeTile>;
    launch("moment_finish", kernel, stream, Shape{blocks, kThreads}, table, count, apart, workspace);
}

std::size_t moment_shared_bytes(int tile) {
    return tile == kCovarianceSmallTile ? sizeof(TileMemory<double, kCovarianceSmallTile>)
                                        : sizeof(TileMemory<float, kCovarianceLargeTile>);
}

}  // namespace slimfast::cuda
