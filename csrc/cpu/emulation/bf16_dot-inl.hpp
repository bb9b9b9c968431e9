// What native/bf16_dot-inl.hpp does with an instruction.
#pragma once

#include "../bf16_panels-inl.hpp"
#include "bf16_arithmetic-inl.hpp"

namespace slimfast::SLIMFAST_ISA {

SLIMFAST_INLINE Vec<float> dot(Vec<float> sum, Pairs a, Pairs b) {
    std::uint16_t left[2 * kPanel], right[2 * kPanel];
    std::memcpy(left, &a, sizeof left);
    std::memcpy(right, &b, sizeof right);
    for (int l = 0; l < kPanel; ++l) {
        const float odd = multiplied(left[2 * l + 1], right[2 * l + 1], sum[l]);
        sum[l] = multiplied(left[2 * l], right[2 * l], odd);
    }
    return sum;
}

}  // namespace slimfast::SLIMFAST_ISA
