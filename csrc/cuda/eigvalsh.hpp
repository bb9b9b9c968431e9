// Eigenvalues of symmetric matrices: Householder reduction to tridiagonal form, then Sturm multisection.
#pragma once

#include <cstddef>
#include <cstdint>

#include "stream.hpp"

namespace slimfast::cuda {

enum EigField {
    kEigMatrix,
    kEigSize,  // m
    kEigRowStride,
    kEigColumnStride,  // only elements (i, j) with j <= i are read
    kEigTridiagonal,   // float64 workspace of 2 m + 1: the diagonal, the squared off-diagonal entries, the
                       // scale
    kEigStorage,       // tridiagonalise_workspace_bytes(), 16-byte aligned; 0 where all is in shared memory
    kEigOut,           // (m,), in the matrix's type
    kEigFields
};

// The largest matrix of the one-warp kernel, and the most blocks that share one matrix.
inline constexpr int kWarpMatrix = 32;
inline constexpr int kMaxCluster = 8;

// `layers` (on the device) holds kEigFields per matrix, all float64 or all float32.

// Everything for m <= kWarpMatrix, a warp to each matrix.
void eigvalsh_warp(Stream stream, const std::int64_t* layers, int count, bool is_double);

// Where the reduction of a matrix keeps what it works with.
enum Placement { kInShared, kVectorsInShared, kInWorkspace };

// The tridiagonal form of any matrices: `cluster` blocks to each. `largest` is the largest m among them.
void tridiagonalise(Stream stream, const std::int64_t* layers, int count, bool is_double,
                    std::int64_t largest, unsigned cluster, int placement);

// Eigenvalues from the tridiagonal forms. `table` has starts before the layers as in gather.hpp, which count
// blocks of kSturmValues eigenvalues.
inline constexpr int kSturmValues = 128;
void sturm_eigenvalues(Stream stream, const std::int64_t* table, int count, std::int64_t blocks,
                       bool is_double, std::int64_t largest);

// Shared memory of one block of tridiagonalise, and the workspace of all blocks that share a matrix.
std::size_t tridiagonalise_shared_bytes(std::int64_t m, bool is_double, unsigned cluster, int placement);
std::size_t tridiagonalise_workspace_bytes(std::int64_t m, bool is_double, unsigned cluster);

}  // namespace slimfast::cuda
