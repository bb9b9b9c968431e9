// What native/bf16_tile_products-inl.hpp does with an instruction: even and odd products are added up on
// their own, then together.
#pragma once

#include "../bf16_panels-inl.hpp"
#include "bf16_arithmetic-inl.hpp"

namespace slimfast::SLIMFAST_ISA {

struct Tiles {};

SLIMFAST_INLINE void tile_product(const std::uint16_t* a, const std::uint16_t* b, i64 cells, float* sums) {
    for (i64 i = 0; i < kPanel * kPanel; ++i) sums[i] = 0;
    for (i64 k = 0; k < cells; ++k, a += kCell, b += kCell) {
        for (i64 r = 0; r < kPanel; ++r) {
            float even[kPanel] = {}, odd[kPanel] = {};
            for (i64 p = 0; p < kPairs; ++p) {
                for (i64 c = 0; c < kPanel; ++c) {
                    const std::uint16_t *left = a + r * kDepth + 2 * p, *right = b + p * kDepth + 2 * c;
                    even[c] = multiplied(left[0], right[0], even[c]);
                    odd[c] = multiplied(left[1], right[1], odd[c]);
                }
            }
            for (i64 c = 0; c < kPanel; ++c) {
                float& sum = sums[r * kPanel + c];
                sum = flushed(flushed(sum) + flushed(even[c] + odd[c]));
            }
        }
    }
}

SLIMFAST_INLINE void tile_products(const std::uint16_t* a, const std::uint16_t* b, i64 stride, i64 cells,
                                   int rows, int cols, PanelSums& sums) {
    for (int r = 0; r < rows; ++r) {
        for (int c = 0; c < cols; ++c) {
            tile_product(a + r * stride, b + c * stride, cells, sums.of[r][c]);
        }
    }
}

}  // namespace slimfast::SLIMFAST_ISA
