// Whole numbers that both sides count with, and the macro for functions that both sides call.
#pragma once

#include <cstdint>

// In front of a function for the host and, under nvcc, the device. Always inlined: the CPU kernels are
// compiled once per instruction set, and the linker would keep one copy of a function that stands alone.
#ifdef __CUDACC__
#define SLIMFAST_COMMON __host__ __device__ __forceinline__
#else
#define SLIMFAST_COMMON inline __attribute__((always_inline))
#endif

namespace slimfast {

using i64 = std::int64_t;

// How many steps cover `value`.
SLIMFAST_COMMON constexpr i64 ceil_div(i64 value, i64 step) { return (value + step - 1) / step; }

// The multiple of `step` that is not below `value`.
SLIMFAST_COMMON constexpr i64 round_up(i64 value, i64 step) { return ceil_div(value, step) * step; }

// Entries of a lower triangle with its diagonal.
SLIMFAST_COMMON constexpr i64 triangle_size(i64 rows) { return rows * (rows + 1) / 2; }

}  // namespace slimfast
