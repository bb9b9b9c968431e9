// How float and double are made, as constants that device code and every instruction set may use.
#pragma once

#include <cstdint>
#include <limits>

namespace slimfast {

// The bits of a number from the left: its sign, its exponent plus kBias, its mantissa. Where the sum of a
// vector's squares is below kNegligibleSquare it is not accurate, and nothing next to a norm of about one.
template <class T>
struct FloatFormat;
template <>
struct FloatFormat<float> {
    using Integer = std::int32_t;
    static constexpr int kMantissaBits = 23;
    static constexpr Integer kBias = 127;
    static constexpr Integer kMagnitude = 0x7fffffff;
    static constexpr float kNegligibleSquare = 1e-30f;
};
template <>
struct FloatFormat<double> {
    using Integer = std::int64_t;
    static constexpr int kMantissaBits = 52;
    static constexpr Integer kBias = 1023;
    static constexpr Integer kMagnitude = 0x7fffffffffffffff;
    static constexpr double kNegligibleSquare = 1e-280;
};

// An integer as wide as T.
template <class T>
using BitsOf = typename FloatFormat<T>::Integer;

template <class T>
struct Float : FloatFormat<T> {
    static constexpr T kMax = std::numeric_limits<T>::max();
    static constexpr T kEpsilon = std::numeric_limits<T>::epsilon();
    static constexpr T kInfinity = std::numeric_limits<T>::infinity();
    static constexpr T kNan = std::numeric_limits<T>::quiet_NaN();
    // The bits of the exponent, all set: those of infinity.
    static constexpr BitsOf<T> kExponent = FloatFormat<T>::kMagnitude >> FloatFormat<T>::kMantissaBits
                                                                             << FloatFormat<T>::kMantissaBits;
};

}  // namespace slimfast
