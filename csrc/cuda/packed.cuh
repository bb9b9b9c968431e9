// What a block that reduces a matrix works with: the packed lower triangle and the vectors of one elimination
// step.
//
// The triangle is stored by row blocks of 4 rows, block R as 4 rows of 4 (R + 1) entries, so that a lane's 4
// x 4 tile is four 16-byte loads without bank conflicts; the tile on the diagonal is stored whole.
#pragma once

#include "launch.cuh"

namespace slimfast::cuda {

inline constexpr int kReductionWarps = 12;
inline constexpr int kBlock = 4;

template <class T>
struct alignas(16) Quad {
    T x[kBlock];
};

// Row blocks R = rank, rank + cluster, ... belong to one block of the cluster; this is where R starts in its
// memory.
SLIMFAST_COMMON i64 row_block_start(i64 row_block, unsigned rank, unsigned cluster) {
    const i64 before = row_block / cluster;
    return kBlock * kBlock * (cluster * before * (before - 1) / 2 + before * (rank + 1));
}

SLIMFAST_COMMON i64 row_blocks(i64 size) { return ceil_div(size, kBlock); }

// The most entries a block of the cluster stores: the last rank owns the longest rows.
SLIMFAST_COMMON i64 storage_elements(i64 size, unsigned cluster) {
    const i64 owned = ceil_div(row_blocks(size), cluster);
    return row_block_start(owned * cluster, cluster - 1, cluster);
}

// The shared memory of one block of the cluster, carved in this order: the vectors, padded to whole row
// blocks, and the packed rows. What is only for peers comes last among the vectors and, without peers, has no
// room.
template <class T, bool kPeers>
struct ReductionMemory {
    double* norms;    // (warps,) sums of squares
    double* dots;     // (warps,) u^T A u
    double* sent;     // (2,) this block's share of u^T A u, for its peers, taking turns
    double* largest;  // the largest entry of this block's rows, for its peers
    T* vectors;       // (2, padded) the pending reflection's vector and the new one, taking turns
    T* companion;     // w of the pending update A - v w^T - w v^T
    T* rows;          // A u by rows
    T* share;         // (2, padded) this block's share of A u, for its peers, taking turns
    T* next_row;      // (2, padded) the next row to eliminate, for its peers, taking turns
    T* columns;       // (warps, padded) A u by columns
    T* storage;       // the packed rows

    __device__ ReductionMemory(unsigned char* memory, i64 padded)
        : norms(reinterpret_cast<double*>(memory)),
          dots(norms + kReductionWarps),
          sent(dots + kReductionWarps),
          largest(sent + 2),
          vectors(reinterpret_cast<T*>(memory + kScalarBytes)),
          companion(vectors + 2 * padded),
          rows(companion + padded),
          share(rows + padded),
          next_row(share + 2 * padded),
          columns(reinterpret_cast<T*>(memory + vector_bytes(padded))),
          storage(columns + kReductionWarps * padded) {}

    // A multiple of 16.
    static constexpr std::size_t kScalarBytes = (2 * kReductionWarps + 4) * sizeof(double);

    SLIMFAST_COMMON static std::size_t vector_bytes(i64 padded) {
        return kScalarBytes + (kPeers ? 8 : 4) * static_cast<std::size_t>(padded) * sizeof(T);
    }
    SLIMFAST_COMMON static std::size_t all_bytes(i64 size, unsigned cluster) {
        const i64 padded = row_blocks(size) * kBlock;
        return vector_bytes(padded) +
               static_cast<std::size_t>(kReductionWarps * padded + storage_elements(size, cluster)) *
                   sizeof(T);
    }
};

}  // namespace slimfast::cuda
