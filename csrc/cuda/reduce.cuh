// Sums, maxima and searches of a warp or a block. Every lane takes part and every lane gets the result.
#pragma once

#include "../common/floats.hpp"
#include "launch.cuh"

namespace slimfast::cuda {

inline constexpr unsigned kAllLanes = 0xffffffffu;

__device__ inline int lane_index() { return static_cast<int>(threadIdx.x & 31); }
__device__ inline int warp_index() { return static_cast<int>(threadIdx.x >> 5); }
__device__ inline int warp_count() { return static_cast<int>(blockDim.x >> 5); }

template <class T>
__device__ inline T warp_sum(T value) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) value += __shfl_xor_sync(kAllLanes, value, mask);
    return value;
}

// Lane l gets the sum over the lanes of terms[l]: halving the number of sums that a lane carries with each
// exchange takes 31 shuffles.
template <int kHalf = 16, class T>
__device__ inline T transposed_sum(T (&terms)[32]) {
    const bool upper = (lane_index() & kHalf) != 0;
#pragma unroll
    for (int j = 0; j < kHalf; ++j) {
        const T sent = upper ? terms[j] : terms[j + kHalf];
        terms[j] = (upper ? terms[j + kHalf] : terms[j]) + __shfl_xor_sync(kAllLanes, sent, kHalf);
    }
    if constexpr (kHalf > 1) return transposed_sum<kHalf / 2>(terms);
    return terms[0];
}

template <class T>
__device__ inline T warp_max(T value) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) {
        const T other = __shfl_xor_sync(kAllLanes, value, mask);
        value = other > value ? other : value;
    }
    return value;
}

// Sum over the block in the order of the warps; `scratch` holds one value per warp and is free again at the
// return.
template <class T>
__device__ inline T block_sum(T value, T* scratch) {
    value = warp_sum(value);
    if (lane_index() == 0) scratch[warp_index()] = value;
    __syncthreads();
    T total = 0;
    for (int w = 0; w < warp_count(); ++w) total += scratch[w];
    return total;
}

template <class T>
__device__ inline T block_max(T value, T* scratch) {
    value = warp_max(value);
    if (lane_index() == 0) scratch[warp_index()] = value;
    __syncthreads();
    T best = scratch[0];
    for (int w = 1; w < warp_count(); ++w) best = scratch[w] > best ? scratch[w] : best;
    return best;
}

// The last i < count with starts[i] <= at; starts is ascending and starts[0] <= at. One warp searches 32-way.
__device__ inline int find_segment(const i64* starts, int count, i64 at) {
    int low = 0;
    int span = count;
    while (span > 1) {
        const int step = (span + 31) / 32;
        const int offset = (lane_index() + 1) * step;
        const bool below = offset < span && starts[low + offset] <= at;
        const int hops = __popc(__ballot_sync(kAllLanes, below));
        low += hops * step;
        span = min(step, span - hops * step);
    }
    return low;
}

}  // namespace slimfast::cuda
