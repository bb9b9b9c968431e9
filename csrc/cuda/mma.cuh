// Products of small matrices by a warp: (16, 8) += (16, 8) (8, 8) on the tensor cores, float64 as it is and
// float32 as three products of 11-bit halves (tf32).
//
// Lane 4 g + t holds rows g and g + 8, columns 2 t and 2 t + 1 of a left factor as well as of a sum, so that
// a sum can be the next product's left factor; of a right factor it holds rows 2 t, 2 t + 1 and column g. The
// instructions want t and t + 4 instead, of the left factor's columns and the right one's rows alike: what is
// summed over them is the same.
#pragma once

#include "mma_instructions.cuh"
#include "reduce.cuh"

namespace slimfast::cuda {

inline constexpr int kMmaRows = 16;
inline constexpr int kMmaColumns = 8;
inline constexpr int kMmaDepth = 8;

// Row g + 8 half, column 2 t + i at x[2 half + i].
template <class T>
struct MmaSum {
    T x[4];
};

__device__ inline int mma_group() { return lane_index() / 4; }
__device__ inline int mma_pair() { return lane_index() % 4 * 2; }

// Factors as multiply_add takes them: in float32 split into a leading half and the leading half of what is
// left.
template <class T, int kCount>
struct MmaFactor;
template <int kCount>
struct MmaFactor<double, kCount> {
    double x[kCount];

    MmaFactor() = default;
    __device__ explicit MmaFactor(const double (&from)[kCount]) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) x[i] = from[i];
    }
};
template <int kCount>
struct MmaFactor<float, kCount> {
    float high[kCount], low[kCount];

    MmaFactor() = default;
    __device__ explicit MmaFactor(const float (&from)[kCount]) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            high[i] = to_tf32(from[i]);
            low[i] = to_tf32(from[i] - high[i]);
        }
    }
};
template <class T>
using MmaLeft = MmaFactor<T, 4>;
template <class T>
using MmaRight = MmaFactor<T, 2>;

template <class T>
__device__ inline MmaLeft<T> left_factor(const MmaSum<T>& from) {
    return MmaLeft<T>({from.x[0], from.x[2], from.x[1], from.x[3]});
}
// Out of memory: element (r, k) of the left factor at r row_step + k depth_step, (k, c) of the right one at
// k depth_step + c column_step.
template <class T>
__device__ inline MmaLeft<T> load_left(const T* from, int row_step, int depth_step) {
    const T* at = from + mma_group() * row_step + mma_pair() * depth_step;
    const T* below = at + 8 * row_step;
    return MmaLeft<T>({at[0], below[0], at[depth_step], below[depth_step]});
}
template <class T>
__device__ inline MmaRight<T> load_right(const T* from, int depth_step, int column_step) {
    const T* at = from + mma_group() * column_step + mma_pair() * depth_step;
    return MmaRight<T>({at[0], at[depth_step]});
}

__device__ inline void multiply_add(MmaSum<double>& sum, const MmaLeft<double>& left,
                                    const MmaRight<double>& right) {
    multiply_add(sum.x, left.x, right.x);
}
// What is left out, low times low, is below 2^-22 of a product. The instruction cuts its sums off, always
// towards zero, instead of rounding them: each product starts from nothing and is added by an addition that
// rounds.
__device__ inline void multiply_add(MmaSum<float>& sum, const MmaLeft<float>& left,
                                    const MmaRight<float>& right) {
    float part[4] = {};
    multiply_add(part, left.low, right.high);
    multiply_add(part, left.high, right.low);
    multiply_add(part, left.high, right.high);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum.x[i] += part[i];
}

}  // namespace slimfast::cuda
