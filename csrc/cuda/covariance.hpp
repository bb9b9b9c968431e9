// Covariances of the rows of strided matrices, all layers of a network in three launches.
#pragma once

#include "../common/dtypes.hpp"
#include "stream.hpp"

namespace slimfast::cuda {

// x (n, d), each row centred on its mean over d. The result is over p variables and q samples: the rows and
// the positions, or the other way round. Strides count elements; places count float64 or float32 elements of
// a buffer.
enum CovarianceField {
    kCovX,
    kCovXType,    // a Dtype
    kCovRows,     // n
    kCovColumns,  // d
    kCovRowStride,
    kCovColumnStride,
    kCovByRows,    // 1: p = n variables; 0: p = d
    kCovFirstRow,  // place of row 0 in the means and the sums of squares of all layers
    kCovOut,       // (p, p), contiguous
    kCovOutIsDouble,
    kCovSplits,   // parts of the samples, each a whole number of kCovarianceChunk
    kCovPartial,  // place of the partial sums in the workspace; unused for one split
    kCovFields
};

inline constexpr int kCovarianceSmallTile = 64;
inline constexpr int kCovarianceLargeTile = 128;
// Rows whose means one block computes.
inline constexpr int kMomentRows = 32;
// Splits are whole numbers of so many samples, and in float32 no more are summed in one go.
inline constexpr int kCovarianceChunk = 128;
// Rows of a tile whose parts one block adds up.
inline constexpr int kCovarianceFinishRows = 32;

// Tables on the device: starts (count + 1) as in gather.hpp, then kCovFields per layer.
// Means and sums of squared deviations of every row in float64; starts count blocks of kMomentRows rows.
void row_moments(Stream stream, const i64* table, int count, i64 blocks, double* means, double* squares);

// traces[i] = sum of squares / max(d - 1, 1).
void covariance_traces(Stream stream, const i64* layers, int count, const double* squares, double* traces);

// The matrices of layers that share the working precision and the tile; starts count tiles of the lower
// triangle times splits. A layer of one split is finished here, others leave partial sums in `workspace`
// (elements of the working precision), tile by tile.
void covariance_tiles(Stream stream, const i64* table, int count, i64 blocks, bool in_double, int tile,
                      const double* means, void* workspace);

// Adds the partial sums in the order of the splits, in float64; starts count tiles of the lower triangle
// times their rows over kCovarianceFinishRows.
void covariance_finish(Stream stream, const i64* table, int count, i64 blocks, bool in_double, int tile,
                       const void* workspace);

// Shared memory of a block of covariance_tiles.
std::size_t covariance_shared_bytes(bool in_double, int tile);

}  // namespace slimfast::cuda
