// How bfloat16 samples lie in memory for the instructions that multiply pairs of them.
//
// A panel has kPanel variables; samples are multiplied kDepth at a time, which are kPairs pairs. A cell, one
// panel by kDepth samples, lies as [variable][sample] for the left factor and as [pair][variable][2] for the
// right one.
#pragma once

#include "simd.hpp"

namespace slimfast::SLIMFAST_ISA {

constexpr i64 kPanel = 16, kPairs = 16, kDepth = 2 * kPairs;
constexpr i64 kCell = kPanel * kDepth;

static_assert(kLanes<float> == kPanel);

// A vector of pairs, as bits: nothing is to be computed with them as floats.
using Pairs = Mask<float>;

// Sums of two by two panels, [row][column] each.
struct alignas(64) PanelSums {
    float of[2][2][kPanel * kPanel];
};

}  // namespace slimfast::SLIMFAST_ISA
