// tdpbf16ps: products of tiles of bfloat16 numbers, added in float32.
#pragma once

#include <immintrin.h>

#include "../bf16_panels-inl.hpp"

namespace slimfast::SLIMFAST_ISA {

// Shapes all tiles of the thread as 16 rows of 64 bytes, and gives them back.
struct Tiles {
    Tiles() {
        alignas(64) unsigned char shape[64] = {1};
        for (int tile = 0; tile < 8; ++tile) {
            shape[16 + 2 * tile] = 64;
            shape[48 + tile] = 16;
        }
        _tile_loadconfig(shape);
    }
    ~Tiles() { _tile_release(); }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;
};

// sums.of[r][c] = left panel r times right panel c over `cells` cells, for r < rows and c < cols (1 or 2),
// the panels `stride` elements apart.
SLIMFAST_INLINE void tile_products(const std::uint16_t* a, const std::uint16_t* b, i64 stride, i64 cells,
                                   int rows, int cols, PanelSums& sums) {
    constexpr int row = 64;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (i64 k = 0; k < cells; ++k, a += kCell, b += kCell) {
        _tile_loadd(4, a, row);
        _tile_loadd(6, b, row);
        _tile_dpbf16ps(0, 4, 6);
        if (cols == 2) {
            _tile_loadd(7, b + stride, row);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (rows == 2) {
            _tile_loadd(5, a + stride, row);
            _tile_dpbf16ps(2, 5, 6);
            if (cols == 2) _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, sums.of[0][0], row);
    _tile_stored(1, sums.of[0][1], row);
    _tile_stored(2, sums.of[1][0], row);
    _tile_stored(3, sums.of[1][1], row);
}

}  // namespace slimfast::SLIMFAST_ISA
