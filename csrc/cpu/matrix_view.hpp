// Matrices in somebody else's memory, read in place.
#pragma once

#include "../common/dtypes.hpp"

namespace slimfast {

// A (rows, cols) matrix; strides in elements, any sign, zero included.
struct MatrixView {
    const void* data;
    Dtype dtype;
    i64 rows;
    i64 cols;
    i64 row_stride;
    i64 col_stride;
};

}  // namespace slimfast
