// Vectors of SLIMFAST_VECTOR_BYTES bytes in the compiler's own vector types, so that one text serves every
// ISA.
//
// Included only by kernels.cpp, which is compiled once per instruction set. Everything sits in the namespace
// of that set, and nothing from the standard library that could be emitted out of line is used: the linker
// would keep one copy of it, maybe one that the machine cannot run.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "../common/floats.hpp"
#include "../common/integers.hpp"

namespace slimfast::SLIMFAST_ISA {

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
    typedef float type __attribute__((vector_size(SLIMFAST_VECTOR_BYTES)));
    typedef std::int32_t mask __attribute__((vector_size(SLIMFAST_VECTOR_BYTES)));
};
template <>
struct VectorOf<double> {
    typedef double type __attribute__((vector_size(SLIMFAST_VECTOR_BYTES)));
    typedef std::int64_t mask __attribute__((vector_size(SLIMFAST_VECTOR_BYTES)));
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

// Lane l is lane l ^ bit of v.
template <class T, int bit, int... lane>
SLIMFAST_INLINE Vec<T> swapped(Vec<T> v, std::integer_sequence<int, lane...>) {
    return __builtin_shufflevector(v, v, (lane ^ bit)...);
}

template <class T, int bit = lanes<T> / 2>
SLIMFAST_INLINE T sum_of(Vec<T> v) {
    v += swapped<T, bit>(v, std::make_integer_sequence<int, lanes<T>>{});
    if constexpr (bit > 1) {
        return sum_of<T, bit / 2>(v);
    } else {
        return v[0];
    }
}

// Lane l of a, or where l has `bit` (or has not, for `high`) lane l ^ bit of the other vector.
template <class T, int bit, bool high, int... lane>
SLIMFAST_INLINE Vec<T> exchanged(Vec<T> a, Vec<T> b, std::integer_sequence<int, lane...>) {
    return __builtin_shufflevector(a, b,
                                   (high ? (lane & bit ? lane + lanes<T> : lane ^ bit)
                                         : (lane & bit ? (lane ^ bit) + lanes<T> : lane))...);
}

// rows[r][c] becomes rows[c][r]: each step swaps one bit of the two indices.
template <class T, int bit = lanes<T> / 2>
SLIMFAST_INLINE void transpose(Vec<T> (&rows)[lanes<T>]) {
    constexpr auto all = std::make_integer_sequence<int, lanes<T>>{};
    for (int i = 0; i < lanes<T>; ++i) {
        if (i & bit) continue;
        const Vec<T> a = rows[i], b = rows[i | bit];
        rows[i] = exchanged<T, bit, false>(a, b, all);
        rows[i | bit] = exchanged<T, bit, true>(a, b, all);
    }
    if constexpr (bit > 1) transpose<T, bit / 2>(rows);
}

SLIMFAST_INLINE float square_root(float x) { return __builtin_sqrtf(x); }
SLIMFAST_INLINE double square_root(double x) { return __builtin_sqrt(x); }

template <class T>
SLIMFAST_INLINE constexpr T smaller(T a, T b) {
    return b < a ? b : a;
}

template <class T>
SLIMFAST_INLINE constexpr T larger(T a, T b) {
    return a < b ? b : a;
}

}  // namespace slimfast::SLIMFAST_ISA
