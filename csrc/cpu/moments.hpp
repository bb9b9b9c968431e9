// Streaming moments of a group of layers: centred sums of products, added to what earlier calls left.
#pragma once

#include <optional>
#include <vector>

#include "kernels.hpp"
#include "patches.hpp"

namespace slimfast {

// A dim of positions: how many, and how far apart they are in the two operands and in the mask (elements).
struct PositionDim {
    i64 size, x_stride, y_stride, mask_stride;
};

// Where the sums are that are added to: of x with itself (mean_y null), squares (variables of x)^2, both
// triangles; or of x with y, (variables of x, variables of y). `count` positions are in them.
struct MomentSums {
    i64 count;
    double* mean_x;
    double* mean_y;
    double* products;
};

// x, and y where it is not x itself: their variables, and the positions that both have in the order of
// `dims`. A position counts where `mask`, if there is one, is not 0. Or, with `patches`, the variables and
// the positions of these, x then having a type and a number of variables alone.
struct MomentLayer {
    MomentOperand x, y;
    std::vector<PositionDim> dims;
    const unsigned char* mask;
    bool in_double;
    MomentSums sums;
    std::optional<Patches> patches;
};

// Adds each layer's moments to its sums, whose count becomes that of all positions. The result does not
// depend on `threads`.
void moments(std::vector<MomentLayer>& layers, int threads, Isa isa);

}  // namespace slimfast
