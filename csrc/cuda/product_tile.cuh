// Tiles of products summed over samples: how a block of kTileThreads brings two operands to shared memory
// stage by stage and multiplies them, float32 by multiply-adds and float64 on the tensor cores.
#pragma once

#include "covariance.hpp"
#include "mma_instructions.cuh"
#include "reduce.cuh"

namespace slimfast::cuda {

inline constexpr unsigned kTileThreads = 256;

template <class T, int kTile>
struct Tiling {
    static constexpr int kDepth = kTile == kCovarianceLargeTile || sizeof(T) == 8 ? 16 : 32;
    // Four more keep 16-byte rows, and spread over the banks what a warp reads and writes at a time.
    static constexpr int kPitch = kTile + 4;
    static constexpr int kLoads = kTile * kDepth / static_cast<int>(kTileThreads);
    static constexpr int kSums = kTile * kTile / static_cast<int>(kTileThreads);
    // Samples summed in one go; the sums of the chunks are added up on their own, so that the rounding error
    // grows with the root of their number, not of d.
    static constexpr int kChunk = sizeof(T) == 8 ? 512 : kCovarianceChunk;
    // Two stages and the sums of the chunks; in the end, in their place, the tile.
    static constexpr int kStages = 2 * kDepth * kPitch;
    static constexpr std::size_t kSharedBytes = sizeof(T) * (kStages + kTile * kTile);
    static_assert(kStages >= kTile, "the tile with its padding fits");
    static_assert(kCovarianceChunk % kDepth == 0, "a chunk is whole stages");
};

// A thread's sums of one tile in float32: a 4 x 4 patch of every 64 x 64 quarter, 16 x 16 threads to each.
template <class T, int kTile>
struct Sums {
    static constexpr int kPatch = 4;
    static constexpr int kSpan = 16 * kPatch;
    static constexpr int kSide = kTile / kSpan * kPatch;
    T sum[kSide][kSide];

    __device__ T& at(int i) { return sum[i / kSide][i % kSide]; }
    __device__ static int row_of(int i) {
        return static_cast<int>(threadIdx.x) / 16 * kPatch + i / kSide / kPatch * kSpan + i / kSide % kPatch;
    }
    __device__ static int column_of(int i) {
        return static_cast<int>(threadIdx.x) % 16 * kPatch + i % kSide / kPatch * kSpan + i % kPatch;
    }

    __device__ void multiply(const T* left, const T* right) {
        using Sizes = Tiling<T, kTile>;
#pragma unroll 4
        for (int k = 0; k < Sizes::kDepth; ++k) {
            T a[kSide], b[kSide];
#pragma unroll
            for (int i = 0; i < kSide; ++i) {
                a[i] = left[k * Sizes::kPitch + row_of(i * kSide)];
                b[i] = right[k * Sizes::kPitch + column_of(i)];
            }
#pragma unroll
            for (int i = 0; i < kSide; ++i) {
#pragma unroll
                for (int j = 0; j < kSide; ++j) sum[i][j] += a[i] * b[j];
            }
        }
    }
};

// In float64: the tensor cores' fragments, 2 x 4 warps to a tile.
template <int kTile>
struct Sums<double, kTile> {
    static constexpr int kRowTiles = kTile / 2 / 16;
    static constexpr int kColumnTiles = kTile / 4 / 8;
    double sum[kRowTiles][kColumnTiles][4];

    __device__ double& at(int i) { return sum[i / 4 / kColumnTiles][i / 4 % kColumnTiles][i % 4]; }
    __device__ static int first_row() { return warp_index() / 4 * (kTile / 2) + lane_index() / 4; }
    __device__ static int first_column() { return warp_index() % 4 * (kTile / 4); }
    __device__ static int row_of(int i) { return first_row() + i / 4 / kColumnTiles * 16 + i % 4 / 2 * 8; }
    __device__ static int column_of(int i) {
        return first_column() + i / 4 % kColumnTiles * 8 + lane_index() % 4 * 2 + i % 2;
    }

    __device__ void multiply(const double* left, const double* right) {
        using Sizes = Tiling<double, kTile>;
        const int depth = lane_index() % 4;
        left += depth * Sizes::kPitch + first_row();
        right += depth * Sizes::kPitch + first_column() + lane_index() / 4;
#pragma unroll
        for (int k = 0; k < Sizes::kDepth; k += 8) {
            double a[kRowTiles][4], b[kColumnTiles][2];
#pragma unroll
            for (int i = 0; i < kRowTiles * 4; ++i)
                a[i / 4][i % 4] = left[(k + i % 4 / 2 * 4) * Sizes::kPitch + i / 4 * 16 + i % 2 * 8];
#pragma unroll
            for (int j = 0; j < kColumnTiles * 2; ++j)
                b[j / 2][j % 2] = right[(k + j % 2 * 4) * Sizes::kPitch + j / 2 * 8];
#pragma unroll
            for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
                for (int j = 0; j < kColumnTiles; ++j) multiply_add(sum[i][j], a[i], b[j]);
            }
        }
    }
};

// Operands on their way: a stage of 32 bytes' worth of samples, then of variables, to a thread's neighbours
// where samples follow each other in memory, so that sectors are read whole and no two lanes write one bank.
template <class T, int kTile>
struct Stage {
    using Sizes = Tiling<T, kTile>;
    static constexpr int kRun = 32 / static_cast<int>(sizeof(T));
    T values[Sizes::kLoads];

    __device__ static int variable_of(int i, bool along_samples) {
        const int element = static_cast<int>(threadIdx.x) + i * static_cast<int>(kTileThreads);
        return along_samples ? element / kRun % kTile : element % kTile;
    }
    __device__ static int depth_of(int i, bool along_samples) {
        const int element = static_cast<int>(threadIdx.x) + i * static_cast<int>(kTileThreads);
        return along_samples ? element % kRun + element / (kRun * kTile) * kRun : element / kTile;
    }

    // Takes element(variable, depth), both counted from the stage's first.
    template <class Element>
    __device__ void fetch(bool along_samples, Element element) {
#pragma unroll
        for (int i = 0; i < Sizes::kLoads; ++i)
            values[i] = element(variable_of(i, along_samples), depth_of(i, along_samples));
    }

    __device__ void put(T* shared, bool along_samples) const {
#pragma unroll
        for (int i = 0; i < Sizes::kLoads; ++i)
            shared[depth_of(i, along_samples) * Sizes::kPitch + variable_of(i, along_samples)] = values[i];
    }
};

// Adds the products of samples begin..end - 1 to `sums`, which start at zero, and moves them to `total` (each
// thread's own, kTileThreads apart) after every kChunk of them. fetch(sample) reads the stages of the
// rows and of the columns; at_chunk(sample) runs before the first barrier of every kCovarianceChunk samples,
// and what it writes to shared memory fetch may read from the chunk after on. A diagonal tile has one
// operand.
template <int kChunk, class T, int kTile, class Total, class Fetch, class AtChunk>
__device__ inline void sum_stages(Sums<T, kTile>& sums, Stage<T, kTile> (&next)[2],
                                  const bool (&along_samples)[2], bool diagonal, i64 begin, i64 end,
                                  T* stages, Total* total, Fetch fetch, AtChunk at_chunk) {
    using Sizes = Tiling<T, kTile>;
    T* const left = stages;
    T* const right = diagonal ? stages : stages + Sizes::kDepth * Sizes::kPitch;
#pragma unroll
    for (int i = 0; i < Sizes::kSums; ++i) total[i * kTileThreads] = sums.at(i) = 0;
    fetch(begin);
    for (i64 sample = begin; sample < end; sample += Sizes::kDepth) {
        if ((sample - begin) % kCovarianceChunk == 0) at_chunk(sample);
        next[0].put(left, along_samples[0]);
        if (!diagonal) next[1].put(right, along_samples[1]);
        __syncthreads();
        if (sample + Sizes::kDepth < end) fetch(sample + Sizes::kDepth);
        sums.multiply(left, right);
        if ((sample + Sizes::kDepth - begin) % kChunk == 0) {
#pragma unroll
            for (int i = 0; i < Sizes::kSums; ++i) {
                total[i * kTileThreads] += sums.at(i);
                sums.at(i) = 0;
            }
        }
        __syncthreads();
    }
}

}  // namespace slimfast::cuda
