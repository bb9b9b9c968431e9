// Products of bfloat16 numbers: vdpbf16ps or tdpbf16ps, or with SLIMFAST_EMULATED their arithmetic in plain
// C++.
//
// Both multiply pairs exactly, add in float32 to nearest even, take subnormal numbers for zero and give zero
// for them.
#pragma once

#include "simd.hpp"
#ifndef SLIMFAST_EMULATED
#include <immintrin.h>
#endif

namespace slimfast::SLIMFAST_ISA {

// A panel has this many variables; samples are multiplied `depth` at a time, which are `pairs` pairs. A cell,
// one panel by `depth` samples, lies as [variable][sample] for the left factor and as [pair][variable][2] for
// the right one.
constexpr i64 panel = 16, pairs = 16, depth = 2 * pairs;
constexpr i64 cell = panel * depth;

static_assert(lanes<float> == panel);

// Cells whose products are one sum from zero. In float32 a sum has 128 roundings in a row. Here it has fewer,
// which pays for the means that are still in it: a register has one a sample, a tile adds up 16 pairs on
// their own.
#ifdef SLIMFAST_AMX
constexpr i64 chain_cells = 8;
#else
constexpr i64 chain_cells = 2;
#endif

// A vector of pairs, as bits: nothing is to be computed with them as floats.
using Pairs = Mask<float>;

// Sums of two by two panels, [row][column] each.
struct alignas(64) Sums {
    float of[2][2][panel * panel];
};

SLIMFAST_INLINE float widened(std::uint16_t bits) {
    const std::uint32_t word = std::uint32_t{bits} << 16;
    float value;
    std::memcpy(&value, &word, sizeof value);
    return value;
}

#ifdef SLIMFAST_EMULATED

SLIMFAST_INLINE float flushed(float x) {
    return __builtin_fabsf(x) < 0x1p-126f ? __builtin_copysignf(0.0f, x) : x;
}

SLIMFAST_INLINE float multiplied(std::uint16_t a, std::uint16_t b, float sum) {
    return flushed(__builtin_fmaf(flushed(widened(a)), flushed(widened(b)), flushed(sum)));
}

#endif

// Below: panels_product, which sets sums.of[r][c] to left panel r times right panel c over `cells` cells, for
// r < rows and c < cols (1 or 2), the panels `stride` elements apart; and Tiles, which lives around its
// calls.
#ifdef SLIMFAST_AMX

#ifdef SLIMFAST_EMULATED

struct Tiles {};

SLIMFAST_INLINE void tile_product(const std::uint16_t* a, const std::uint16_t* b, i64 cells, float* sums) {
    for (i64 i = 0; i < panel * panel; ++i) sums[i] = 0;
    for (i64 k = 0; k < cells; ++k, a += cell, b += cell) {
        for (i64 r = 0; r < panel; ++r) {
            float even[panel] = {}, odd[panel] = {};
            for (i64 p = 0; p < pairs; ++p) {
                for (i64 c = 0; c < panel; ++c) {
                    const std::uint16_t *left = a + r * depth + 2 * p, *right = b + p * depth + 2 * c;
                    even[c] = multiplied(left[0], right[0], even[c]);
                    odd[c] = multiplied(left[1], right[1], odd[c]);
                }
            }
            for (i64 c = 0; c < panel; ++c) {
                float& sum = sums[r * panel + c];
                sum = flushed(flushed(sum) + flushed(even[c] + odd[c]));
            }
        }
    }
}

SLIMFAST_INLINE void panels_product(const std::uint16_t* a, const std::uint16_t* b, i64 stride, i64 cells,
                                    int rows, int cols, Sums& sums) {
    for (int r = 0; r < rows; ++r) {
        for (int c = 0; c < cols; ++c) {
            tile_product(a + r * stride, b + c * stride, cells, sums.of[r][c]);
        }
    }
}

#else

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

SLIMFAST_INLINE void panels_product(const std::uint16_t* a, const std::uint16_t* b, i64 stride, i64 cells,
                                    int rows, int cols, Sums& sums) {
    constexpr int row = 64;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (i64 k = 0; k < cells; ++k, a += cell, b += cell) {
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

#endif

#else

struct Tiles {};

// Every lane of sum plus the products of its pairs, the odd elements first.
SLIMFAST_INLINE Vec<float> dot(Vec<float> sum, Pairs a, Pairs b) {
#ifdef SLIMFAST_EMULATED
    std::uint16_t left[2 * panel], right[2 * panel];
    std::memcpy(left, &a, sizeof left);
    std::memcpy(right, &b, sizeof right);
    for (int l = 0; l < panel; ++l) {
        const float odd = multiplied(left[2 * l + 1], right[2 * l + 1], sum[l]);
        sum[l] = multiplied(left[2 * l], right[2 * l], odd);
    }
    return sum;
#else
    return (Vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#endif
}

template <int rows, int cols>
SLIMFAST_INLINE void registers_product(const std::uint16_t* a, const std::uint16_t* b, i64 stride, i64 cells,
                                       float* const (&sums)[2]) {
    Vec<float> tile[rows][cols] = {};
    for (i64 k = 0; k < cells; ++k, a += cell, b += cell) {
        for (i64 p = 0; p < pairs; ++p) {
            Pairs right[cols];
            for (int c = 0; c < cols; ++c) {
                std::memcpy(&right[c], b + c * stride + p * depth, sizeof right[c]);
            }
            for (int r = 0; r < rows; ++r) {
                std::int32_t pair;
                std::memcpy(&pair, a + r * depth + 2 * p, sizeof pair);
                const Pairs left = pair - Pairs{};
                for (int c = 0; c < cols; ++c) tile[r][c] = dot(tile[r][c], left, right[c]);
            }
        }
    }
    for (int r = 0; r < rows; ++r) {
        for (int c = 0; c < cols; ++c) store(sums[c] + r * panel, tile[r][c]);
    }
}

SLIMFAST_INLINE void panels_product(const std::uint16_t* a, const std::uint16_t* b, i64 stride, i64 cells,
                                    int rows, int cols, Sums& sums) {
    constexpr int step = 8;
    for (int r = 0; r < rows * panel; r += step) {
        const std::uint16_t* left = a + r / panel * stride + r % panel * depth;
        const auto at = [&](int c) { return sums.of[r / panel][c] + r % panel * panel; };
        if (cols == 2) {
            registers_product<step, 2>(left, b, stride, cells, {at(0), at(1)});
        } else {
            registers_product<step, 1>(left, b, stride, cells, {at(0), nullptr});
        }
    }
}

#endif

}  // namespace slimfast::SLIMFAST_ISA
