// The loops of pivoted Cholesky: a lazy step, and what is left of a large matrix after a block of steps.
#pragma once

#include "band-inl.hpp"
#include "kernels.hpp"
#include "simd.hpp"

namespace slimfast::SLIMFAST_ISA {

void subtract_steps(double* column, const double* factor, const double* weights, i64 steps, i64 n) {
    constexpr i64 v = kLanes<double>;
    constexpr i64 block = 4 * v;
    i64 i = 0;
    // A block of the column stays in registers while all earlier steps go by.
    for (; i + block <= n; i += block) {
        Vec<double> sum[4];
        for (int c = 0; c < 4; ++c) sum[c] = load(column + i + c * v);
        for (i64 j = 0; j < steps; ++j) {
            const Vec<double> weight = splat(weights[j]);
            for (int c = 0; c < 4; ++c) sum[c] -= weight * load(factor + j * n + i + c * v);
        }
        for (int c = 0; c < 4; ++c) store(column + i + c * v, sum[c]);
    }
    for (; i < n; ++i) {
        double sum = column[i];
        for (i64 j = 0; j < steps; ++j) sum -= weights[j] * factor[j * n + i];
        column[i] = sum;
    }
}

void reduce_left(double* left, const double* column, i64 n) {
    for (i64 i = 0; i < n; ++i) {
        const double rest = left[i] - column[i] * column[i];
        left[i] = rest < 0 ? 0 : rest;
    }
}

// What is left of a matrix is its lower triangle in float64, in the panels of band-inl.hpp.
i64 rest_elements(i64 n) { return panel_elements(round_up(n, kBand)); }

template <class T>
void copy_lower_of(const MatrixView& view, double* rest) {
    const T* data = static_cast<const T*>(view.data);
    const i64 n = view.rows, padded = round_up(n, kBand);
    for (i64 panel = 0; panel < padded / kBand; ++panel) {
        const i64 first = panel * kBand;
        // The block on the diagonal is full.
        for (i64 i = first; i < padded; ++i) {
            double* row = panel_row(rest, padded, panel, i);
            for (i64 j = 0; j < kBand; ++j) {
                const i64 low = larger(i, first + j), high = smaller(i, first + j);
                row[j] =
                    low < n ? static_cast<double>(data[low * view.row_stride + high * view.col_stride]) : 0.0;
            }
        }
    }
}

void copy_lower(const MatrixView& view, double* rest) {
    if (view.dtype == Dtype::kFloat64) {
        copy_lower_of<double>(view, rest);
    } else {
        copy_lower_of<float>(view, rest);
    }
}

void read_column(const double* rest, i64 n, i64 pick, double* column) {
    const i64 padded = round_up(n, kBand), panel = pick / kBand;
    double* all = const_cast<double*>(rest);
    for (i64 i = 0; i < panel * kBand; i += kBand) {
        const double* row = panel_row(all, padded, i / kBand, pick);
        for (i64 j = 0; j < kBand; ++j) column[i + j] = row[j];
    }
    const double* from = panel_row(all, padded, panel, panel * kBand) + pick % kBand;
    for (i64 i = panel * kBand; i < n; ++i) column[i] = from[(i - panel * kBand) * kBand];
}

// rest -= F F^T, where F (n, kBand) has its columns one after another in `factor`. `work` holds
// round_up(n, kBand) band elements.
void subtract_block(double* rest, const double* factor, i64 n, double* work) {
    const i64 padded = round_up(n, kBand);
    for (i64 i = 0; i < padded; ++i) {
        for (i64 k = 0; k < kBand; ++k) work[i * kBand + k] = i < n ? factor[k * n + i] : 0.0;
    }
    double block[kBand * kBand];
    // Tiles of rows outside, so that they stay in cache.
    for (i64 first = 0; first < padded; first += kBandRowsPerTile) {
        const i64 last = smaller(first + kBandRowsPerTile, padded);
        for (i64 panel = 0; panel * kBand < last; ++panel) {
            const i64 from = larger(first, panel * kBand);
            transpose_block(work + panel * kBand * kBand, block);
            add_product<double, -1>(last - from, kBand, work + from * kBand, kBand, 1, block,
                                    panel_row(rest, padded, panel, from));
        }
    }
}

constexpr CholeskyKernels kCholeskyKernels{subtract_steps, reduce_left, kBand,         rest_elements,
                                           copy_lower,     read_column, subtract_block};

}  // namespace slimfast::SLIMFAST_ISA
