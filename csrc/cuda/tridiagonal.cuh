// What the reductions to tridiagonal form share: the scale of a matrix and one Householder reflection.
#pragma once

#include "reduce.cuh"

namespace slimfast::cuda {

// |x|, or infinity where x is not finite: the maximum over a matrix tells both its scale and whether it is
// sound.
template <class T>
__device__ inline T magnitude(T x) {
    const T positive = x < T{0} ? -x : x;
    return positive <= Float<T>::kMax ? positive : Float<T>::kInfinity;
}

// The power of two that brings a largest magnitude into [1, 2); the eigenvalues are multiplied back by
// `undo`.
struct Scale {
    int exponent;

    __device__ explicit Scale(double largest) : exponent(1) {
        if (largest > 0.0) frexp(largest, &exponent);
        --exponent;
    }
    template <class T>
    __device__ T apply(T x) const {
        return static_cast<T>(ldexp(static_cast<double>(x), -exponent));
    }
    __device__ double undo() const { return ldexp(1.0, exponent); }
};

// H = I - t u u^T with u = (x_0, ..., x_{k-1}, head) maps (x_0, ..., x_{k-1}, alpha) to (0, ..., 0, beta).
struct Reflection {
    double t, head, beta;

    // `rest` is the sum of squares of x_0 .. x_{k-1}, of a matrix whose entries are below 2: what lies under
    // the floor is far below the rounding of the matrix and is left out, which keeps t within the range of T.
    template <class T>
    __device__ static Reflection of(double alpha, double rest, T) {
        const double negligible = 1e-4 * static_cast<double>(Float<T>::kEpsilon);
        if (!(rest > negligible * negligible)) return {0.0, 0.0, alpha};
        const double beta = alpha > 0.0 ? -sqrt(alpha * alpha + rest) : sqrt(alpha * alpha + rest);
        return {1.0 / (beta * (beta - alpha)), alpha - beta, beta};
    }
};

// I - u u^T with u = (first, scale x) maps (head, x) to (beta, 0, ..., 0), for a column of a matrix of about
// one. How far it is from orthogonal moves every eigenvalue: it is found in float64.
template <class T>
struct ScaledReflection {
    T beta, first, scale;

    // `tail` is the sum of squares of x; where these are too small to be accurate, they are left out.
    __device__ static ScaledReflection of(T head, T tail) {
        if (!(tail > Float<T>::kNegligibleSquare)) return {head, T{0}, T{0}};
        const double from = static_cast<double>(head);
        const double norm = sqrt(from * from + static_cast<double>(tail));
        const double beta = from > 0.0 ? -norm : norm;
        const double scale = 1.0 / sqrt(beta * (beta - from));
        return {static_cast<T>(beta), static_cast<T>((from - beta) * scale), static_cast<T>(scale)};
    }
};

}  // namespace slimfast::cuda
