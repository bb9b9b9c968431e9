// vdpbf16ps: products of pairs of bfloat16 numbers, added in float32.
#pragma once

#include <immintrin.h>

#include "../bf16_panels-inl.hpp"

namespace slimfast::SLIMFAST_ISA {

// Every lane of sum plus the products of its pairs, the odd elements first.
SLIMFAST_INLINE Vec<float> dot(Vec<float> sum, Pairs a, Pairs b) {
    return (Vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}

}  // namespace slimfast::SLIMFAST_ISA
