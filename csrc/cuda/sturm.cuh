// Sturm counts of a symmetric tridiagonal matrix whose Gershgorin bound is between 1/2 and 1, in float64.
#pragma once

#include "reduce.cuh"

namespace slimfast::cuda {

// The power of two above the Gershgorin bound `reach`: scaling by it is exact.
__device__ inline double sturm_unit(double reach) {
    int exponent = 0;
    frexp(reach, &exponent);
    return ldexp(1.0, exponent);
}

// Off-diagonal entries below 1e-20 of the norm are raised to that, so that no two terms in a row vanish.
__device__ inline double square_for_sturm(double e) {
    const double square = e * e;
    return square > 1e-40 ? square : 1e-40;
}

// Turns the diagonal and the off-diagonal entries that follow it, `size` each, into what sturm_counts wants,
// and leaves after them the factor that leads back to the eigenvalues. For all threads of a block, after a
// barrier; `scratch` as for block_max.
__device__ inline void normalise_for_sturm(double* tridiagonal, int size, double undo, double* scratch) {
    double* const off = tridiagonal + size;
    const int threads = static_cast<int>(blockDim.x);
    double reach = 0;
    for (int i = static_cast<int>(threadIdx.x); i < size; i += threads) {
        reach = fmax(reach, fabs(tridiagonal[i]) + fabs(off[i]) + (i + 1 < size ? fabs(off[i + 1]) : 0.0));
    }
    reach = block_max(reach, scratch);
    const double unit = sturm_unit(reach);
    for (int i = static_cast<int>(threadIdx.x); i < size; i += threads) {
        tridiagonal[i] /= unit;
        off[i] = square_for_sturm(off[i] / unit);
    }
    if (threadIdx.x == 0) off[size] = undo * (reach == 0.0 ? 0.0 : unit);
}

// below[j] = number of eigenvalues less than x[j]. The terms of p_i = (d_i - x) p_{i-1} - e_i^2 p_{i-2}
// change sign as often as there are; no division, two dependent operations a row, and kShifts chains to hide
// their latency. Eight rows change the size of a term by a factor between 1e-160 and 3^8, hence the
// thresholds.
template <int kShifts>
__device__ inline void sturm_counts(const double* d, const double* squares, int size,
                                    const double (&x)[kShifts], int (&below)[kShifts]) {
    double term[kShifts], before[kShifts];
#pragma unroll
    for (int j = 0; j < kShifts; ++j) {
        term[j] = 1.0;
        before[j] = 0.0;
        below[j] = 0;
    }
    for (int begin = 0; begin < size; begin += 8) {
        const int end = min(begin + 8, size);
        for (int i = begin; i < end; ++i) {
            const double diagonal = d[i];
            const double square = squares[i];
#pragma unroll
            for (int j = 0; j < kShifts; ++j) {
                const double next = (diagonal - x[j]) * term[j] - square * before[j];
                below[j] += static_cast<unsigned>(__double2hiint(next) ^ __double2hiint(term[j])) >> 31;
                before[j] = term[j];
                term[j] = next;
            }
        }
#pragma unroll
        for (int j = 0; j < kShifts; ++j) {
            const double size_now = fmax(fabs(term[j]), fabs(before[j]));
            const double factor = size_now < 1e-100 ? 1e200 : (size_now > 1e120 ? 1e-120 : 1.0);
            term[j] *= factor;
            before[j] *= factor;
        }
    }
}

// Halvings that bring an interval so far below the rounding of T that the sum over a thousand middles of
// intervals, which are all on the same side of a repeated eigenvalue, is below it too.
template <class T>
__device__ constexpr int sturm_bits() {
    return sizeof(T) == 8 ? 65 : 41;
}

// The eigenvalue of rank `index` (from 0), known to lie in [low, low + width): two bits a pass.
__device__ inline double quarter_interval(const double* d, const double* squares, int size, int index,
                                          double low, double width, int passes) {
    for (int pass = 0; pass < passes; ++pass) {
        width *= 0.25;
        const double x[3] = {low + width, low + 2 * width, low + 3 * width};
        int below[3];
        sturm_counts<3>(d, squares, size, x, below);
        low = below[2] <= index ? x[2] : (below[1] <= index ? x[1] : (below[0] <= index ? x[0] : low));
    }
    return low + 0.5 * width;
}

}  // namespace slimfast::cuda
