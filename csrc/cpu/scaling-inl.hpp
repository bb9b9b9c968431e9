// Matrices scaled by powers of two, which rounds nothing.
#pragma once

#include "simd.hpp"

namespace slimfast::SLIMFAST_ISA {

template <class T>
T power_of_two(i64 exponent) {
    const BitsOf<T> bits = static_cast<BitsOf<T>>(exponent + Float<T>::kBias) << Float<T>::kMantissaBits;
    T value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// The exponent of the power of two that scales a matrix of this largest magnitude to one of about one, where
// no square over- or underflows.
template <class T>
i64 scaling_exponent(BitsOf<T> largest) {
    constexpr i64 bias = Float<T>::kBias;
    return larger<i64>(smaller<i64>(static_cast<i64>(largest >> Float<T>::kMantissaBits) - bias, bias - 1),
                       1 - bias);
}

// Fills values (m) where the largest magnitude alone tells them: of a matrix of zeros, and NaN of one that is
// not finite.
template <class T>
bool is_trivial(BitsOf<T> largest, T* values, i64 m) {
    if (largest != 0 && largest < Float<T>::kExponent) return false;
    const T value = largest == 0 ? T{0} : Float<T>::kNan;
    for (i64 i = 0; i < m; ++i) values[i] = value;
    return true;
}

}  // namespace slimfast::SLIMFAST_ISA
