// Numbers of 16 bits, and what they are as float32.
#pragma once

#include "simd.hpp"

namespace slimfast::SLIMFAST_ISA {

struct bf16_bits {
    std::uint16_t bits;
};
struct f16_bits {
    std::uint16_t bits;
};

SLIMFAST_INLINE double widened(double x) { return x; }
SLIMFAST_INLINE float widened(float x) { return x; }
// The upper half of a float32.
SLIMFAST_INLINE float widened(bf16_bits x) {
    const std::uint32_t bits = std::uint32_t{x.bits} << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
// Shifting the exponent and mantissa into place and multiplying by 2^112 rebases the exponent, subnormals
// included.
SLIMFAST_INLINE float widened(f16_bits x) {
    const std::uint32_t magnitude = std::uint32_t{x.bits & 0x7fffu} << 13;
    float rebased;
    std::memcpy(&rebased, &magnitude, sizeof rebased);
    rebased *= 0x1p112f;
    std::uint32_t bits;
    std::memcpy(&bits, &rebased, sizeof bits);
    bits = magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : bits;
    bits |= std::uint32_t{x.bits & 0x8000u} << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

}  // namespace slimfast::SLIMFAST_ISA
