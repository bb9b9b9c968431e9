// Streaming moments: sums of centred products over the positions of activations, or over the patches that
// convolutions read, added to what earlier calls left. All layers of a call in four launches.
#pragma once

#include "covariance.hpp"

namespace slimfast::cuda {

// Positions in four dims, the last one innermost; of patches the samples and up to three spatial dims.
inline constexpr int kPositionDims = 4;
inline constexpr int kTapDims = kPositionDims - 1;

// Variable v is channel v / taps at tap v % taps. Strides count elements.
enum OperandField {
    kOperandData,
    kOperandType,  // a Dtype
    kOperandVariables,
    kOperandChannelStride,
    kOperandStrides,                                  // of the four dims
    kOperandFirst = kOperandStrides + kPositionDims,  // place of variable 0 in the means and in how far apart
    kOperandSums,                                     // place of the partial sums (splits, variables)
    kOperandMean,                                     // (variables,) float64: of all positions so far
    kOperandFields
};
static_assert(kOperandData == 0 && kOperandType == 1, "as with_elements reads it");

// x, and y where it is not x itself. Position p along dim i + 1 reads at p * step - padding + tap * dilation,
// zero outside 0 .. size - 1; plain operands have one tap, step 1 and no padding.
enum MomentField {
    kMomentX,
    kMomentY = kMomentX + kOperandFields,
    kMomentSymmetric = kMomentY + kOperandFields,  // 1: y is x, and products with a group's own alone
    kMomentMask,                                   // address of a byte for each position, or 0
    kMomentMaskStrides,
    kMomentOutputs = kMomentMaskStrides + kPositionDims,  // positions along each dim
    kMomentSizes = kMomentOutputs + kPositionDims,
    kMomentKernel = kMomentSizes + kTapDims,
    kMomentStep = kMomentKernel + kTapDims,
    kMomentPadding = kMomentStep + kTapDims,
    kMomentDilation = kMomentPadding + kTapDims,
    kMomentGroup = kMomentDilation + kTapDims,  // variables of a group
    kMomentBundle,    // variables of the groups that share tiles: a whole number of groups
    kMomentProducts,  // float64: (groups, group, group), or (variables of x, variables of y)
    kMomentEarlier,   // positions in them
    kMomentCounted,   // address of an int64, how many positions the mask leaves; 0: all
    kMomentSplits,    // parts of the positions, each a whole number of kCovarianceChunk
    kMomentPartial,   // place of the partial products in the workspace
    kMomentFields
};

// Variables whose means one block sums, and those that one block joins.
inline constexpr int kMeanVariables = 32;
inline constexpr int kJoinVariables = 256;
// Rows of a tile whose parts one block adds up.
inline constexpr int kMomentFinishRows = 8;

// Tables on the device as in covariance.hpp: starts (count + 1), then kMomentFields per layer.
// Sums over each split of every variable, in float64; starts count blocks of kMeanVariables of x, then of y,
// times splits.
void moment_sums(Stream stream, const i64* table, int count, i64 blocks, double* sums);

// The means of the positions of this call, and how far they are from those before, which move to those of
// all; starts count blocks of kJoinVariables of x, then of y.
void moment_means(Stream stream, const i64* table, int count, i64 blocks, const double* sums, double* means,
                  double* apart);

// The products of what is centred on these means, of layers that share the working precision and the tile,
// which is the small one in float64: starts count tiles times splits, and `workspace` gets a tile of float64
// sums for each.
void moment_tiles(Stream stream, const i64* table, int count, i64 blocks, bool in_double, int tile,
                  const double* means, double* workspace);

// Adds the splits in their order, and the earlier positions' share, to the products; starts count tiles times
// their rows over kMomentFinishRows.
void moment_finish(Stream stream, const i64* table, int count, i64 blocks, int tile, const double* apart,
                   const double* workspace);

// Shared memory of a block of moment_tiles, at most.
std::size_t moment_shared_bytes(int tile);

}  // namespace slimfast::cuda
