// Damped symmetric positive definite systems, solved by blocked Cholesky factors in float64: all systems of a
// call go through each step in one launch.
#pragma once

#include "../common/dtypes.hpp"
#include "stream.hpp"

namespace slimfast::cuda {

// Columns of the factor that are eliminated at a time, and rows and columns of a tile.
inline constexpr int kSolveBlock = 64;

// (A + damping I) X = B with A (m, m), of which the lower triangle is read, and B (m, k), both of one type.
// m and k are padded to whole blocks, M and K: A by the identity, B by zeros.
enum SolveField {
    kSolveMatrix,
    kSolveIsDouble,  // the type of A, B and the solution: float64, else float32
    kSolveSize,      // m
    kSolveRowStride,
    kSolveColumnStride,
    kSolveDamping,  // the bits of a float64
    kSolveRight,
    kSolveSides,  // k
    kSolveRightRowStride,
    kSolveRightColumnStride,
    kSolveSolution,  // (m, k), contiguous
    kSolveFailure,   // int64, 0 at first: the order of the first leading minor that is not positive
    kSolveFactor,    // float64 (M + K, M): the damped matrix, then B^T; its factor, then what is left of B^T
    kSolveSquares,   // float64 (M, kSolveBlock): the factor's squares on the diagonal
    kSolveUnknowns,  // float64 (K, M): the solution, transposed
    kSolveFields
};

// Tables on the device: `systems` has kSolveFields for each, those of more blocks first; `starts` (count + 1)
// counts the blocks of a launch over the first `count` of them.

// Fills the factors; starts count the tiles of the lower triangle, diagonal included, and of B^T.
void solve_load(Stream stream, const i64* systems, const i64* starts, int count, i64 blocks);

// Eliminates the columns of block `step` in all rows below it; starts count blocks of rows below the square.
void solve_panel(Stream stream, const i64* systems, const i64* starts, int count, i64 blocks, i64 step);

// Takes these columns out of what follows them; starts count its tiles.
void solve_update(Stream stream, const i64* systems, const i64* starts, int count, i64 blocks, i64 step);

// Finds the unknowns of block `step`, and takes them out of those before; starts count blocks of right-hand
// sides times max(step, 1).
void solve_backward(Stream stream, const i64* systems, const i64* starts, int count, i64 blocks, i64 step);

// Writes the solutions, NaN where a system failed; starts count blocks of right-hand sides times blocks of m.
void solve_store(Stream stream, const i64* systems, const i64* starts, int count, i64 blocks);

}  // namespace slimfast::cuda
