// Which tile of a lower triangle a block works on.
#pragma once

#include "launch.cuh"

namespace slimfast::cuda {

template <class Int>
struct TriangleTile {
    Int row, column;
};

// Tile number row (row + 1) / 2 + column; found by a root in Real, which is corrected for its rounding.
template <class Real, class Int>
__device__ inline TriangleTile<Int> triangle_tile(Int number) {
    auto row = static_cast<Int>((sqrt(Real{8} * static_cast<Real>(number) + Real{1}) - Real{1}) / Real{2});
    while (row * (row + 1) / 2 > number) --row;
    while ((row + 1) * (row + 2) / 2 <= number) ++row;
    return {row, number - row * (row + 1) / 2};
}

}  // namespace slimfast::cuda
