// The two loops of a lazy pivoted Cholesky step.
#pragma once

#include "kernels.hpp"
#include "simd.hpp"

namespace slimfast::SLIMFAST_ISA {

void subtract_steps(double* column, const double* factor, const double* weights, i64 steps, i64 n) {
    constexpr i64 v = lanes<double>;
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

constexpr CholeskyKernels cholesky_kernels{subtract_steps, reduce_left};

}  // namespace slimfast::SLIMFAST_ISA
