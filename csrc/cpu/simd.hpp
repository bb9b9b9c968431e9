// Vectors of SLIMFAST_VECTOR_BYTES bytes in the compiler's own vector types, so that one text serves every
// ISA.
//
// Included only by kernels.cpp, which is compiled once per instruction set. Everything sits in the namespace
// of that set, and nothing from the standard library that could be emitted out of line is used: the linker
// would keep one copy of it, maybe one that the machine cannot run.
#pragma once

#include <cstdint>
#include <cstring>

namespace slimfast::SLIMFAST_ISA {

using i64 = std::int64_t;

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
    typedef float type __attribute__((vector_size(SLIMFAST_VECTOR_BYTES)));
    typedef std::int32_t mask __attribute__((vector_size(SLIMFAST_VECTOR_BYTES)));
    using integer = std::int32_t;
};
template <>
struct VectorOf<double> {
    typedef double type __attribute__((vector_size(SLIMFAST_VECTOR_BYTES)));
    typedef std::int64_t mask __attribute__((vector_size(SLIMFAST_VECTOR_BYTES)));
    using integer = std::int64_t;
};

template <class T>
using Vec = typename VectorOf<T>::type;
// What comparing two Vec<T> gives: all bits set where true.
template <class T>
using Mask = typename VectorOf<T>::mask;
template <class T>
inline constexpr int lanes = SLIMFAST_VECTOR_BYTES / sizeof(T);

#define SLIMFAST_INLINE inline __attribute__((always_inline))

template <class T>
SLIMFAST_INLINE Vec<T> load(const T* p) {
    Vec<T> v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

template <class T>
SLIMFAST_INLINE void store(T* p, Vec<T> v) {
    std::memcpy(p, &v, sizeof v);
}

template <class T>
SLIMFAST_INLINE Vec<T> splat(T value) {
    return value - Vec<T>{};
}

template <class T>
SLIMFAST_INLINE T sum_of(Vec<T> v) {
    T parts[lanes<T>];
    store(parts, v);
    for (int width = lanes<T> / 2; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i) parts[i] += parts[i + width];
    }
    return parts[0];
}

SLIMFAST_INLINE float square_root(float x) { return __builtin_sqrtf(x); }
SLIMFAST_INLINE double square_root(double x) { return __builtin_sqrt(x); }

template <class T>
SLIMFAST_INLINE T smaller(T a, T b) {
    return b < a ? b : a;
}

template <class T>
SLIMFAST_INLINE T larger(T a, T b) {
    return a < b ? b : a;
}

SLIMFAST_INLINE i64 round_up(i64 value, i64 step) { return (value + step - 1) / step * step; }

}  // namespace slimfast::SLIMFAST_ISA
