// Copies of strided tensors cut to kept indices along up to two dims, all tensors of a network in one launch.
#pragma once

#include <cstdint>

#include "stream.hpp"

namespace slimfast::cuda {

// A tensor is seen as [outer, a, middle, b, inner] and moved in units of 1, 2, 4, 8 or 16 bytes; sizes (of
// the result) and strides (of the source) count units. `a` and `b` are the kept dims; one that is not kept
// whole has the place of its indices in the table, else -1.
enum GatherField {
    kGatherSource,
    kGatherTarget,
    kGatherUnitBytes,
    kGatherUnits,         // of the result
    kGatherSizeA,         // kept
    kGatherRowLength,     // middle * b * inner, below 2^31 - kGatherTile
    kGatherMiddleLength,  // b * inner
    kGatherInnerLength,   // inner
    kGatherStrides,       // outer, a, middle, b, inner
    kGatherIndexA = kGatherStrides + 5,
    kGatherIndexB,
    kGatherDivisors,  // of the last three and of size a: see Divisor in gather.cu
    kGatherFields = kGatherDivisors + 4
};

// Units of the result that one block writes.
inline constexpr std::int64_t kGatherTile = 2048;

// `table` (on the device): starts (count + 1), the first tile of each tensor and their number in all; then
// kGatherFields per tensor; then the kept indices.
void gather(Stream stream, const std::int64_t* table, int count, std::int64_t tiles);

}  // namespace slimfast::cuda
