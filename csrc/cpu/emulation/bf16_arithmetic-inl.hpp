// The arithmetic of vdpbf16ps and tdpbf16ps in plain C++: pairs are multiplied exactly and added in float32
// to nearest even; subnormal numbers are taken for zero, and zero is given for them.
#pragma once

#include "../halves-inl.hpp"

namespace slimfast::SLIMFAST_ISA {

SLIMFAST_INLINE float flushed(float x) {
    return __builtin_fabsf(x) < 0x1p-126f ? __builtin_copysignf(0.0f, x) : x;
}

// sum + a b, where a and b are the bits of bfloat16 numbers.
SLIMFAST_INLINE float multiplied(std::uint16_t a, std::uint16_t b, float sum) {
    return flushed(
        __builtin_fmaf(flushed(widened(bf16_bits{a})), flushed(widened(bf16_bits{b})), flushed(sum)));
}

}  // namespace slimfast::SLIMFAST_ISA
