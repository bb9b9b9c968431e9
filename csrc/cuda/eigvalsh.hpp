// Eigenvalues of symmetric matrices: Householder reduction to tridiagonal form, in one stage or two, then
// Sturm multisection.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "stream.hpp"

namespace slimfast::cuda {

enum EigField {
    kEigMatrix,
    kEigSize,  // m
    kEigRowStride,
    kEigColumnStride,  // only elements (i, j) with j <= i are read
    kEigTridiagonal,   // float64 workspace of 2 m + 1: the diagonal, the squared off-diagonal entries, the
                       // scale
    kEigStorage,       // band_workspace_bytes(), 16-byte aligned; 0 for the kernels of one stage
    kEigOut,           // (m,), in the matrix's type
    kEigFields
};

// The largest matrix of the one-warp kernel, and the most blocks that share one matrix.
inline constexpr int kWarpMatrix = 32;
inline constexpr int kMaxCluster = 8;

// `layers` (on the device) holds kEigFields per matrix, all float64 or all float32.

// Everything for m <= kWarpMatrix, a warp to each matrix.
void eigvalsh_warp(Stream stream, const i64* layers, int count, bool is_double);

// The tridiagonal form of matrices that fit into the shared memory of `cluster` blocks, in one stage.
// `largest` is the largest m among them.
void tridiagonalise(Stream stream, const i64* layers, int count, bool is_double, i64 largest,
                    unsigned cluster);
std::size_t tridiagonalise_shared_bytes(i64 m, bool is_double, unsigned cluster);

// The tridiagonal form of any matrices in two stages: to a band in the workspace, then chase_bulges. `sizes`
// are their m, descending; `cluster` blocks share a panel, whose rows are in registers where cluster
// panel_rows() suffice. Launches some kernels for each panel, one after the other.
void reduce_to_band(Stream stream, const i64* layers, const std::vector<i64>& sizes, bool is_double,
                    unsigned cluster);
// `cluster` blocks of `warps` (at most chase_warps()) to each matrix: when it is done follows, not what is
// found.
void chase_bulges(Stream stream, const i64* layers, int count, bool is_double, unsigned cluster,
                  unsigned warps);
unsigned chase_warps(bool is_double);
i64 panel_rows(bool is_double);
std::size_t band_workspace_bytes(i64 m, bool is_double);

// Eigenvalues from the tridiagonal forms. `table` has starts before the layers as in gather.hpp, which count
// blocks of kSturmValues eigenvalues.
inline constexpr int kSturmValues = 128;
void sturm_eigenvalues(Stream stream, const i64* table, int count, i64 blocks, bool is_double, i64 largest);

}  // namespace slimfast::cuda
