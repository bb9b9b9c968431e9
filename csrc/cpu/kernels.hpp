// The inner loops as tables of functions, one table per instruction set: what kernels.cpp has, and
// bf16_*.cpp.
#pragma once

#include "isa.hpp"
#include "matrix_view.hpp"
#include "split_sum.hpp"

namespace slimfast {

// One (rows, cols) block of a covariance over the samples first_sample..last_sample - 1, where variables are
// the rows of x (by_rows) or its columns. It lies below the diagonal, or ends on it: its last column is then
// its last row, and what is above the diagonal is not computed.
struct CovarianceBlock {
    MatrixView x;
    bool by_rows;
    // The mean of every row of x over its columns is mean[i] + rest[i]; x - mean - rest keeps what is left of
    // x exactly.
    const double* mean;
    const double* rest;
    // The first ones are multiples of a panel.
    i64 first_row, rows;
    i64 first_col, cols;
    i64 first_sample, last_sample;
    // Scratch for `samples` centred samples of the rows, unless the block ends on the diagonal, and of the
    // columns, in panels of the result's type.
    void* packed_rows;
    void* packed_cols;
    // (rows, cols), each in whole panels, of the result's type: the sums of products, written or, with `add`,
    // added to.
    void* sums;
    bool add;
    // Of a block that ends on the diagonal: the sum of squares of the centred samples of each panel of rows
    // is added here.
    SplitSum* squares;
};

// bfloat16 samples multiplied as they are, where an instruction does it (bf16-inl.hpp).
struct Bf16Kernels {
    // squares[i]: the sum of squares of row i of x (bf16) about mean[i] + rest[i], for rows first..last - 1.
    void (*row_squares)(const MatrixView& x, i64 first, i64 last, const double* mean, const double* rest,
                        double* squares);
    // As CovarianceKernels::block_f32, block.squares left alone.
    void (*block)(const CovarianceBlock& block);
};

struct CovarianceKernels {
    // Means of rows first..last - 1 of x over its columns, as CovarianceBlock wants them.
    void (*row_means)(const MatrixView& x, i64 first, i64 last, double* mean, double* rest);
    void (*block_f32)(const CovarianceBlock& block);
    void (*block_f64)(const CovarianceBlock& block);
    // Write block.sums, scaled, to both triangles of `out` (m, m).
    void (*write_f32)(const CovarianceBlock& block, double scale, void* out, i64 m);
    void (*write_f64)(const CovarianceBlock& block, double scale, void* out, i64 m);
    // Variables come in panels of so many; samples are packed `samples` at a time.
    i64 panel_f32, panel_f64, samples;
    // Null where there is no such instruction.
    const Bf16Kernels* bf16;
};

// Variables in memory: variable v at a position of offset p is data[v * variable_stride + p].
struct MomentOperand {
    const void* data;
    Dtype dtype;
    i64 variables, variable_stride;
};

// `samples` positions one after another, the first of them at these offsets in x and in y.
struct PositionRun {
    i64 x, y, samples;
};

// How far positions of a run are apart, in x and in y.
struct PositionSteps {
    i64 x, y;
};

// The products of some variables of x (rows) with some of y (columns) over the positions of some runs. Where
// `lower`, y is x and the last column is the last row; what is above the diagonal is not computed.
struct MomentBlock {
    MomentOperand x, y;
    PositionSteps steps;
    const PositionRun* runs;
    i64 run_count, samples;
    bool lower;
    i64 first_row, rows;
    i64 first_col, cols;
    // By variable: means of x and of y over these positions, in two parts as CovarianceBlock has them.
    const double *x_mean, *x_rest, *y_mean, *y_rest;
    // Scratch as CovarianceBlock has it, and the sums (rows, cols in whole panels).
    void* packed_rows;
    void* packed_cols;
    void* sums;
};

struct MomentKernels {
    // Means of the variables first..last - 1 over the runs: of x, or with `of_y` of y.
    void (*means)(const MomentBlock& block, bool of_y, i64 first, i64 last, double* mean, double* rest);
    // Fills block.sums.
    void (*multiply_f32)(const MomentBlock& block);
    void (*multiply_f64)(const MomentBlock& block);
    // total (rows, cols in whole panels), (+)= sums + weight * row_apart * col_apart; by row and column of
    // the block.
    void (*add_f32)(const MomentBlock& block, bool fresh, double weight, const double* row_apart,
                    const double* col_apart, double* total);
    void (*add_f64)(const MomentBlock& block, bool fresh, double weight, const double* row_apart,
                    const double* col_apart, double* total);
};

// A symmetric (m, m) matrix whose lower triangle is read in place, and where its eigenvalues go.
struct SymmetricMatrix {
    MatrixView a;
    void* values;
};

// The threads that work on one thing together: each calls the same function with its own rank.
struct ThreadTeam {
    int rank, size;
    void* barrier;
    void (*wait_at)(void* barrier, int size);
    void (*yield)();

    // Until all have come here.
    __attribute__((always_inline)) void wait() const {
        if (size > 1) wait_at(barrier, size);
    }
    // Between two looks at what another one does.
    __attribute__((always_inline)) void relax() const { yield(); }
};

struct EigvalshKernels {
    // Bytes of scratch for one matrix of m rows.
    i64 (*scratch_bytes)(Dtype dtype, i64 m);
    // Whether a matrix of m rows is one that a team can work on; the rest is for a team of one.
    bool (*shareable)(Dtype dtype, i64 m);
    // How many matrices of m rows solve_many takes at a time; 0 where solve takes them one by one.
    i64 (*many)(Dtype dtype, i64 m);
    // The same for 1 <= `count` <= many matrices of the same m and dtype, on one thread.
    void (*solve_many)(const SymmetricMatrix* const* matrices, i64 count, void* scratch);
    // All eigenvalues, ascending; NaN throughout for a matrix that is not finite. The scratch is the team's;
    // the result does not depend on its size.
    void (*solve)(const SymmetricMatrix& matrix, void* scratch, const ThreadTeam& team);
};

// Column of a pivoted Cholesky step: column -= sum over j < steps of weights[j] * factor[j * n ...], for all
// n rows.
struct CholeskyKernels {
    void (*subtract)(double* column, const double* factor, const double* weights, i64 steps, i64 n);
    // left = max(left - column^2, 0); returns nothing else, the caller zeroes what is picked.
    void (*reduce)(double* left, const double* column, i64 n);
    // For large matrices, `block` steps at a time: what is left of the matrix (rest_elements of float64),
    // begun as its lower triangle; one of its columns; and less the products of `block` columns of the
    // factor, with (n rounded up to a block) x block elements of scratch.
    i64 block;
    i64 (*rest_elements)(i64 n);
    void (*copy_lower)(const MatrixView& a, double* rest);
    void (*read_column)(const double* rest, i64 n, i64 pick, double* column);
    void (*subtract_block)(double* rest, const double* factor, i64 n, double* work);
};

// (a + damping I) solution = b: a (m, m) symmetric, read below its diagonal, b (m, k), solution (m, k)
// contiguous of b's type. `failure`: 0, or the order of the first leading minor that is not positive.
struct DampedSystem {
    MatrixView a, b;
    double damping;
    void* solution;
    i64 failure;
};

struct SolveKernels {
    // Bytes of scratch for a system of m rows and k right-hand sides.
    i64 (*scratch_bytes)(i64 m, i64 k);
    void (*solve)(DampedSystem& system, void* scratch);
};

struct Kernels {
    CovarianceKernels covariance;
    MomentKernels moments;
    EigvalshKernels eigvalsh;
    CholeskyKernels cholesky;
    SolveKernels solve;
};

// What is compiled for one row of isas.def: all kernels, or only those of bfloat16, which go with its base's
// other ones, or nothing. Each row has one, called kOwn, in its namespace.
struct IsaKernels {
    const Kernels* all;
    const Bf16Kernels* bf16;
};

const Kernels& kernels(Isa isa);

}  // namespace slimfast
