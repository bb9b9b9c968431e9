// Pivoted Cholesky of symmetric positive semidefinite matrices, all of them in one launch.
#pragma once

#include <cstdint>

#include "stream.hpp"

namespace slimfast::cuda {

// The matrix (n, n) has element (i, j) at i * row stride + j * column stride, and is symmetric. All
// arithmetic is float64. Beyond the picks the order is -1, the factor zero and the residual what was left;
// where that is not finite, picking stops.
enum PivotField {
    kPivotMatrix,
    kPivotSize,  // n
    kPivotRank,  // at most this many picks
    kPivotRowStride,
    kPivotColumnStride,
    kPivotLeft,      // (n,) float64: variance not yet explained
    kPivotColumns,   // (rank, n) float64: the factor, transposed
    kPivotFactor,    // (rank, n) in the matrix's type: its copy; unused for float64
    kPivotResidual,  // (rank,) in the matrix's type
    kPivotOrder,     // (rank,) int64
    kPivotPicked,    // int64: the number of picks
    kPivotIsDouble,  // the matrix's type: float64, else float32
    kPivotFields
};

// `layers` (on the device) holds kPivotFields per matrix. Blocks come in clusters of `cluster`: the first
// `shared` matrices get a whole one each, the others a block.
void pivoted_cholesky(Stream stream, const i64* layers, int count, int shared, unsigned cluster);

}  // namespace slimfast::cuda
