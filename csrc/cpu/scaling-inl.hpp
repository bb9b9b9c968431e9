// Matrices scaled by powers of two, which rounds nothing.
#pragma once

#include "simd.hpp"

namespace slimfast::SLIMFAST_ISA {

template <class T>
T power_of_two(i64 exponent) {
    using Integer = typename VectorOf<T>::integer;
    const Integer bits = sizeof(T) == 4 ? Integer(exponent + 127) << 23 : Integer((exponent + 1023) << 52);
    T value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// The exponent of the power of two that scales a matrix of this largest magnitude to one of about one, where
// no square over- or underflows.
template <class T>
i64 scaling_exponent(typename VectorOf<T>::integer largest) {
    constexpr i64 bias = sizeof(T) == 4 ? 127 : 1023;
    constexpr int mantissa = sizeof(T) == 4 ? 23 : 52;
    return larger<i64>(smaller<i64>(static_cast<i64>(largest >> mantissa) - bias, bias - 1), 1 - bias);
}

// Fills values (m) where the largest magnitude alone tells them: of a matrix of zeros, and NaN of one that is
// not finite.
template <class T>
bool is_trivial(typename VectorOf<T>::integer largest, T* values, i64 m) {
    constexpr typename VectorOf<T>::integer infinite =
        sizeof(T) == 4 ? i64{0x7f800000} : i64{0x7ff0000000000000};
    if (largest != 0 && largest < infinite) return false;
    const T value = largest == 0 ? T{0} : static_cast<T>(__builtin_nan(""));
    for (i64 i = 0; i < m; ++i) values[i] = value;
    return true;
}

}  // namespace slimfast::SLIMFAST_ISA
