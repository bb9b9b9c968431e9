// Copies of strided tensors cut to kept indices, all tensors of a network in one launch.
#pragma once

#include <vector>

#include "../common/gather_dims.hpp"
#include "stream.hpp"

namespace slimfast::cuda {

// A result is written as a matrix: five dims, of which the first three count its rows and the last two its
// columns, moved in units of 1, 2, 4, 8 or 16 bytes. Sizes (of the result) and strides (of the source) count
// units; a dim that is not kept whole has the place of its indices in the table, else -1.
enum GatherField {
    kGatherSource,
    kGatherTarget,
    kGatherUnitBytes,
    kGatherRows,
    kGatherColumns,
    kGatherLanes,         // threads side by side along a row: a power of two
    kGatherRowsOfThread,  // a multiple of kGatherRowsInFlight
    kGatherTilesAcross,   // tiles along a row
    kGatherSizes,
    kGatherStrides = kGatherSizes + 5,
    kGatherIndices = kGatherStrides + 5,
    kGatherDivisors = kGatherIndices + 5,  // of the second, third and last size: see Divisor in gather.cu
    kGatherFields = kGatherDivisors + 3
};

inline constexpr int kGatherThreads = 256;
// Columns of one thread, which it finds once for all of its rows.
inline constexpr int kGatherColumnsPerThread = 4;
// Rows of which a thread reads its columns before it writes any.
inline constexpr int kGatherRowsInFlight = 2;
inline constexpr int kGatherMostRowsOfThread = 8;

// A dim of a tensor as in GatherDim; `kept` counts the call's lists of indices, -1 for a dim kept whole.
struct KeptDim {
    i64 size, stride;
    int kept;
};

// `target` is contiguous; of up to five dims, or of any number where the source is contiguous and at most two
// are kept.
struct GatherTensor {
    std::uintptr_t source, target;
    i64 element_bytes;
    std::vector<KeptDim> dims;
};

// Indices of a kept dim on the host, ascending.
struct GatherIndices {
    const i64* first;
    i64 count;
};

// The table of a call: starts (count + 1), the first tile of each entry and their number in all; then
// kGatherFields per entry; then the kept indices. A tensor is one entry, or several where it has more rows or
// columns than the kernel counts in 31 bits.
struct GatherTable {
    std::vector<i64> numbers;
    int count;
    i64 tiles;
};

GatherTable gather_table(const std::vector<GatherTensor>& tensors, const std::vector<GatherIndices>& indices);

// `table`: its numbers on the device.
void gather(Stream stream, const i64* table, int count, i64 tiles);

}  // namespace slimfast::cuda
