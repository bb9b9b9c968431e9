// Tiles of the gathered tensors, a block to each.
#include "gather.hpp"
#include "reduce.cuh"

namespace slimfast::cuda {
namespace {

constexpr int kColumns = kGatherColumnsPerThread;

// n / d as a multiplication and a shift, for 0 <= n < 2^31 and 1 <= d < 2^31 (Granlund and Montgomery, 1994):
// with shift = ceil(log2 d), the multiplier is floor(2^32 (2^shift - d) / d) + 1. A table entry packs shift
// << 32 over it.
__device__ inline unsigned divide(unsigned n, i64 packed) {
    return (__umulhi(n, static_cast<unsigned>(packed)) + n) >> static_cast<unsigned>(packed >> 32);
}

// Where position i of one dim lies in the source, in units.
__device__ inline i64 offset_of(const i64* fields, const i64* table, int dim, unsigned i) {
    const i64 place = fields[kGatherIndices + dim];
    return (place < 0 ? i : __ldg(table + place + i)) * fields[kGatherStrides + dim];
}

__device__ inline i64 row_offset(const i64* fields, const i64* table, unsigned row) {
    const auto size1 = static_cast<unsigned>(fields[kGatherSizes + 1]);
    const auto size2 = static_cast<unsigned>(fields[kGatherSizes + 2]);
    const unsigned above = divide(row, fields[kGatherDivisors + 1]);
    const unsigned first = divide(above, fields[kGatherDivisors]);
    return offset_of(fields, table, 0, first) + offset_of(fields, table, 1, above - first * size1) +
           offset_of(fields, table, 2, row - above * size2);
}

__device__ inline i64 column_offset(const i64* fields, const i64* table, unsigned column) {
    const auto size = static_cast<unsigned>(fields[kGatherSizes + 4]);
    const unsigned above = divide(column, fields[kGatherDivisors + 2]);
    return offset_of(fields, table, 3, above) + offset_of(fields, table, 4, column - above * size);
}

// Kernel: one block writes one tile of one tensor. A thread keeps its columns and goes down the rows, so that
// indices are looked up and positions divided once for many units; neighbours along a row are neighbouring
// threads.
template <class Unit>
__device__ void copy_tile(const i64* fields, const i64* table, unsigned tile, i64* row_offsets) {
    constexpr int in_flight = kGatherRowsInFlight;
    const auto lanes = static_cast<unsigned>(fields[kGatherLanes]);
    const auto rows_of_thread = static_cast<unsigned>(fields[kGatherRowsOfThread]);
    const auto columns = static_cast<unsigned>(fields[kGatherColumns]);
    const auto tiles_across = static_cast<unsigned>(fields[kGatherTilesAcross]);
    const unsigned down = tile / tiles_across;
    const unsigned step = kGatherThreads / lanes;
    const unsigned first_row = down * step * rows_of_thread;
    const unsigned rows = min(static_cast<unsigned>(fields[kGatherRows]) - first_row, step * rows_of_thread);
    for (unsigned row = threadIdx.x; row < rows; row += kGatherThreads)
        row_offsets[row] = row_offset(fields, table, first_row + row);

    const unsigned first_column = (tile - down * tiles_across) * lanes * kColumns + threadIdx.x % lanes;
    const Unit* from[kColumns];
    bool inside[kColumns];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
        const unsigned column = first_column + c * lanes;
        inside[c] = column < columns;
        from[c] = reinterpret_cast<const Unit*>(fields[kGatherSource]) +
                  (inside[c] ? column_offset(fields, table, column) : 0);
    }
    Unit* const target =
        reinterpret_cast<Unit*>(fields[kGatherTarget]) + static_cast<i64>(first_row) * columns + first_column;
    __syncthreads();
    for (unsigned first = threadIdx.x / lanes; first < rows; first += in_flight * step) {
        Unit moved[in_flight][kColumns] = {};
#pragma unroll
        for (int r = 0; r < in_flight; ++r) {
            const unsigned row = first + r * step;
            if (row >= rows) continue;
#pragma unroll
            for (int c = 0; c < kColumns; ++c) {
                if (inside[c]) moved[r][c] = __ldg(from[c] + row_offsets[row]);
            }
        }
#pragma unroll
        for (int r = 0; r < in_flight; ++r) {
            const unsigned row = first + r * step;
            if (row >= rows) continue;
            Unit* to = target + static_cast<i64>(row) * columns;
#pragma unroll
            for (int c = 0; c < kColumns; ++c) {
                if (inside[c]) to[c * lanes] = moved[r][c];
            }
        }
    }
}

__global__ void __launch_bounds__(kGatherThreads) gather_tiles(const i64* __restrict__ table, int count) {
    const int tensor = find_segment(table, count, blockIdx.x);
    const i64* fields = table + count + 1 + i64{tensor} * kGatherFields;
    const auto tile = static_cast<unsigned>(blockIdx.x - table[tensor]);
    auto* row_offsets = reinterpret_cast<i64*>(shared_memory());
    switch (fields[kGatherUnitBytes]) {
        case 16:
            return copy_tile<uint4>(fields, table, tile, row_offsets);
        case 8:
            return copy_tile<uint2>(fields, table, tile, row_offsets);
        case 4:
            return copy_tile<std::uint32_t>(fields, table, tile, row_offsets);
        case 2:
            return copy_tile<std::uint16_t>(fields, table, tile, row_offsets);
        default:
            return copy_tile<std::uint8_t>(fields, table, tile, row_offsets);
    }
}

}  // namespace

void gather(Stream stream, const i64* table, int count, i64 tiles) {
    // A tile has at most this many rows: where a row is one unit long.
    constexpr std::size_t rows = kGatherThreads * kGatherMostRowsOfThread;
    launch("gather_tiles", gather_tiles, stream, Shape{tiles, kGatherThreads, rows * sizeof(i64)}, table,
           count);
}

}  // namespace slimfast::cuda
