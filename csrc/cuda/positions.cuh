// Where the elements of operands are: of variables and of positions, looked up once by a block and kept in
// its shared memory, so that an element costs additions and comparisons alone.
#pragma once

#include "elements.cuh"
#include "moments.hpp"

namespace slimfast::cuda {

// What is read of a variable at every position: how far from it, and the mean in two parts (in float64 the
// second is zero).
template <class T, int kCount>
struct VariableTable {
    i64 offset[kCount];
    T high[kCount], low[kCount];
    unsigned tap[kTapDims][kCount];
};

// Positions: where they begin in the two operands and in the image, and whether they count.
template <int kCount>
struct PositionTable {
    i64 x[kCount], y[kCount];
    unsigned at[kTapDims][kCount];
    int counts[kCount];
};

// Added to any place of an image, of at most 2^30 in each dim, this is outside.
inline constexpr unsigned kNowhere = 0x80000000u;

__device__ inline double mean_part(double mean, double, bool high) { return high ? mean : 0.0; }
__device__ inline float mean_part(double mean, float, bool high) {
    const auto leading = static_cast<float>(mean);
    return high ? leading : static_cast<float>(mean - leading);
}

// Entry `at` for variable v of an operand of the layer; of none where v is not below `end`. `means` null:
// nothing is subtracted.
template <class T, int kCount>
__device__ void locate_variable(VariableTable<T, kCount>& table, int at, const i64* layer, const i64* operand,
                                i64 v, i64 end, const double* means) {
    const i64* kernel = layer + kMomentKernel;
    i64 rest = v;
    i64 offset = 0;
#pragma unroll
    for (int d = kTapDims - 1; d >= 0; --d) {
        const i64 place = rest % kernel[d] * layer[kMomentDilation + d];
        rest /= kernel[d];
        offset += place * operand[kOperandStrides + d + 1];
        table.tap[d][at] = v < end ? static_cast<unsigned>(place) : kNowhere;
    }
    table.offset[at] = offset + rest * operand[kOperandChannelStride];
    const double mean = means != nullptr && v < end ? means[operand[kOperandFirst] + v] : 0.0;
    table.high[at] = mean_part(mean, T{}, true);
    table.low[at] = mean_part(mean, T{}, false);
}

// Entry `at` for position p; it does not count where it is not below `end`.
template <int kCount>
__device__ void locate_position(PositionTable<kCount>& table, int at, const i64* layer, i64 p, i64 end) {
    const i64* x = layer + kMomentX + kOperandStrides;
    const i64* y = layer + kMomentY + kOperandStrides;
    i64 in_x = 0, in_y = 0, in_mask = 0;
    i64 rest = p;
#pragma unroll
    for (int d = kTapDims - 1; d >= 0; --d) {
        const i64 output = rest % layer[kMomentOutputs + d + 1];
        rest /= layer[kMomentOutputs + d + 1];
        const i64 place = output * layer[kMomentStep + d] - layer[kMomentPadding + d];
        in_x += place * x[d + 1];
        in_y += place * y[d + 1];
        in_mask += output * layer[kMomentMaskStrides + d + 1];
        table.at[d][at] = static_cast<unsigned>(place);
    }
    table.x[at] = in_x + rest * x[0];
    table.y[at] = in_y + rest * y[0];
    in_mask += rest * layer[kMomentMaskStrides];
    const auto* mask = reinterpret_cast<const unsigned char*>(layer[kMomentMask]);
    table.counts[at] = p < end && (mask == nullptr || mask[in_mask] != 0);
}

// The image that taps are inside of, or not.
struct Image {
    unsigned size[kTapDims];

    __device__ explicit Image(const i64* layer) {
#pragma unroll
        for (int d = 0; d < kTapDims; ++d) size[d] = static_cast<unsigned>(layer[kMomentSizes + d]);
    }
};

// Variable v at position p, less its mean; zero where that does not count, and where it is nothing of an
// operand.
template <class T, class X, int kVariables, int kPositions>
__device__ inline T centred_element(const X* x, const Image& image,
                                    const VariableTable<T, kVariables>& variables, int v,
                                    const PositionTable<kPositions>& positions, int p, bool of_y) {
    if (!positions.counts[p]) return T{0};
    bool inside = true;
#pragma unroll
    for (int d = 0; d < kTapDims; ++d)
        inside = inside && positions.at[d][p] + variables.tap[d][v] < image.size[d];
    const i64 place = (of_y ? positions.y[p] : positions.x[p]) + variables.offset[v];
    const T value = inside ? centred(x[place], 0.0, T{}) : T{0};
    return (value - variables.high[v]) - variables.low[v];
}

}  // namespace slimfast::cuda
