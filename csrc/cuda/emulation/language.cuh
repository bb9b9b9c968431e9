// As much of CUDA as the kernels use, in C++: what is a keyword, a variable or an intrinsic to nvcc.
#pragma once

#include <algorithm>
#include <cmath>

#include "cuda_on_cpu.hpp"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __align__(n) alignas(n)

inline void __syncthreads(EMULATION_SITE) { emulation::sync_block({file, line}); }
inline void __syncwarp(unsigned = ~0u, EMULATION_SITE) { emulation::sync_warp({file, line}); }
inline void __nanosleep(unsigned) { emulation::yield_thread(); }
inline void __threadfence() {}

template <class T>
T __shfl_sync(unsigned, T value, int lane, int = 32, EMULATION_SITE) {
    return emulation::from_bits<T>(emulation::exchange(emulation::to_bits(value), {file, line})[lane & 31]);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask, int = 32, EMULATION_SITE) {
    const int lane = threadIdx.x & 31;
    return emulation::from_bits<T>(emulation::exchange(emulation::to_bits(value), {file, line})[lane ^ mask]);
}
template <class T>
T __shfl_down_sync(unsigned, T value, unsigned delta, int = 32, EMULATION_SITE) {
    const unsigned lane = threadIdx.x & 31;
    const std::uint64_t* all = emulation::exchange(emulation::to_bits(value), {file, line});
    return emulation::from_bits<T>(all[lane + delta < 32 ? lane + delta : lane]);
}
inline unsigned __ballot_sync(unsigned, bool vote, EMULATION_SITE) {
    const std::uint64_t* all = emulation::exchange(vote, {file, line});
    unsigned votes = 0;
    for (int lane = 0; lane < 32; ++lane) votes |= static_cast<unsigned>(all[lane] != 0) << lane;
    return votes;
}

template <class T>
T __ldg(const T* address) {
    return *address;
}
template <class T>
T __ldcg(const T* address) {
    return *address;
}
template <class T>
T atomicAdd(T* address, T value) {
    const T old = *address;
    *address = old + value;
    return old;
}

inline unsigned __umulhi(unsigned a, unsigned b) {
    return static_cast<unsigned>((static_cast<std::uint64_t>(a) * b) >> 32);
}
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __double2hiint(double value) { return static_cast<int>(emulation::to_bits(value) >> 32); }
using std::max;
using std::min;
using std::sqrt;

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};

struct __nv_bfloat16 {
    std::uint16_t bits;
};
struct __half {
    std::uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 value) {
    return emulation::from_bits<float>(static_cast<std::uint64_t>(value.bits) << 16);
}
inline float __half2float(__half value) {
    const int exponent = (value.bits >> 10) & 31;
    const int fraction = value.bits & 1023;
    float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                    : std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
    if (exponent == 31) magnitude = fraction == 0 ? INFINITY : NAN;
    return value.bits & 0x8000 ? -magnitude : magnitude;
}
