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
inline constexpr int kLanes = SLIMFAST_VECTOR_BYTES / sizeof(T);

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
template <class T, int kBit, int... kLane>
SLIMFAST_INLINE Vec<T> swapped(Vec<T> v, std::integer_sequence<int, kLane...>) {
    return __builtin_shufflevector(v, v, (kLane ^ kBit)...);
}

template <class T, int kBit = kLanes<T> / 2>
SLIMFAST_INLINE T sum_of(Vec<T> v) {
    v += swapped<T, kBit>(v, std::make_integer_sequence<int, kLanes<T>>{});
    if constexpr (kBit > 1) {
        return sum_of<T, kBit / 2>(v);
    } else {
        return v[0];
    }
}

// Lane l of a, or where l has `kBit` (or has not, for `kHigh`) lane l ^ bit of the other vector.
template <class T, int kBit, bool kHigh, int... kLane>
SLIMFAST_INLINE Vec<T> exchanged(Vec<T> a, Vec<T> b, std::integer_sequence<int, kLane...>) {
    return __builtin_shufflevector(a, b,
                                   (kHigh ? (kLane & kBit ? kLane + kLanes<T> : kLane ^ kBit)
                                          : (kLane & kBit ? (kLane ^ kBit) + kLanes<T> : kLane))...);
}

// rows[r][c] becomes rows[c][r]: each step swaps one bit of the two indices.
template <class T, int kBit = kLanes<T> / 2>
SLIMFAST_INLINE void transpose(Vec<T> (&rows)[kLanes<T>]) {
    constexpr auto all = std::make_integer_sequence<int, kLanes<T>>{};
    for (int i = 0; i < kLanes<T>; ++i) {
        if (i & kBit) continue;
        const Vec<T> a = rows[i], b = rows[i | kBit];
        rows[i] = exchanged<T, kBit, false>(a, b, all);
        rows[i | kBit] = exchanged<T, kBit, true>(a, b, all);
    }
    if constexpr (kBit > 1) transpose<T, kBit / 2>(rows);
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
