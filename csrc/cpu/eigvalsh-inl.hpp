// Eigenvalues of one symmetric matrix: scaled, reduced to a tridiagonal one, counted.
#pragma once

#include "kernels.hpp"
#include "sturm-inl.hpp"
#include "tridiagonal-inl.hpp"

namespace slimfast::SLIMFAST_ISA {

// The largest magnitude of x (n) as its bits, which order like the magnitudes, with those of Inf and NaN on
// top.
template <class T>
SLIMFAST_INLINE typename VectorOf<T>::integer largest_bits(const T* x, i64 n) {
    using Integer = typename VectorOf<T>::integer;
    constexpr Integer magnitude = sizeof(T) == 4 ? Integer(0x7fffffff) : Integer(0x7fffffffffffffff);
    Integer largest = 0;
    for (i64 j = 0; j < n; ++j) {
        Integer bits;
        std::memcpy(&bits, x + j, sizeof bits);
        largest = larger<Integer>(largest, bits & magnitude);
    }
    return largest;
}

// Copies the lower triangle of `view` into packed form; returns its largest magnitude's bits.
template <class T>
typename VectorOf<T>::integer pack_lower(const MatrixView& view, T* a) {
    using Integer = typename VectorOf<T>::integer;
    constexpr i64 v = lanes<T>;
    const T* data = static_cast<const T*>(view.data);
    const i64 m = view.rows;
    Integer largest = 0;
    for (i64 start = 0; start < m; start += v) {
        const i64 stride = start + v;
        T* tile = packed_row(a, start);
        for (i64 r = 0; r < v; ++r) {
            T* row = tile + r * stride;
            const i64 i = start + r;
            const i64 filled = i < m ? i + 1 : 0;
            const T* from = data + i * view.row_stride;
            if (view.col_stride == 1) {
                for (i64 j = 0; j < filled; ++j) row[j] = from[j];
            } else {
                for (i64 j = 0; j < filled; ++j) row[j] = from[j * view.col_stride];
            }
            for (i64 j = filled; j < stride; ++j) row[j] = 0;
            largest = larger<Integer>(largest, largest_bits(row, filled));
        }
        for (i64 r = 0; r < v; ++r) {
            for (i64 c = r + 1; c < v; ++c) tile[r * stride + start + c] = tile[c * stride + start + r];
        }
    }
    return largest;
}

template <class T>
T power_of_two(i64 exponent) {
    using Integer = typename VectorOf<T>::integer;
    const Integer bits = sizeof(T) == 4 ? Integer(exponent + 127) << 23 : Integer((exponent + 1023) << 52);
    T value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

template <class T>
constexpr i64 eigvalsh_elements(i64 m) {
    return packed_elements<T>(m) + 2 * m + larger(4 * round_up(m, lanes<T>), sturm_elements<T>(m));
}

template <class T>
void eigvalsh_one(const SymmetricMatrix& matrix, T* a) {
    using Integer = typename VectorOf<T>::integer;
    const i64 m = matrix.a.rows;
    T* values = static_cast<T*>(matrix.values);
    const Integer largest = pack_lower(matrix.a, a);
    constexpr Integer infinite = sizeof(T) == 4 ? Integer(0x7f800000) : Integer(0x7ff0000000000000);
    if (largest == 0 || largest >= infinite) {
        const T value = largest == 0 ? T{0} : static_cast<T>(__builtin_nan(""));
        for (i64 i = 0; i < m; ++i) values[i] = value;
        return;
    }
    // Scaled by a power of two to a largest magnitude near one, where no square over- or underflows.
    constexpr i64 bias = sizeof(T) == 4 ? 127 : 1023;
    constexpr int mantissa = sizeof(T) == 4 ? 23 : 52;
    const i64 exponent =
        larger<i64>(smaller<i64>(static_cast<i64>(largest >> mantissa) - bias, bias - 1), 1 - bias);
    const T scale = power_of_two<T>(-exponent);
    const i64 elements = packed_elements<T>(m);
    for (i64 i = 0; i < elements; ++i) a[i] *= scale;
    T* d = a + elements;
    T* e = d + m;
    T* work = e + m;
    double trace = 0, trace_lost = 0;
    for (i64 i = 0; i < m; ++i) add_exactly(packed_row(a, i)[i], trace, trace_lost);
    tridiagonalise(a, m, d, e, work);
    tridiagonal_eigenvalues(d, e, m, values, work);
    match_trace(values, m, trace, trace_lost);
    const T back = power_of_two<T>(exponent);
    for (i64 i = 0; i < m; ++i) values[i] *= back;
}

void solve(const SymmetricMatrix& matrix, void* scratch) {
    if (matrix.a.dtype == Dtype::f64) {
        eigvalsh_one(matrix, static_cast<double*>(scratch));
    } else {
        eigvalsh_one(matrix, static_cast<float*>(scratch));
    }
}

i64 scratch_bytes(Dtype dtype, i64 m) {
    return dtype == Dtype::f64 ? 8 * eigvalsh_elements<double>(m) : 4 * eigvalsh_elements<float>(m);
}

constexpr EigvalshKernels eigvalsh_kernels{scratch_bytes, solve};

}  // namespace slimfast::SLIMFAST_ISA
