// Matrices in somebody else's memory.
#pragma once

#include <cstdint>

namespace slimfast {

// The codes that Python passes; slimfast/kernels/backends/cpu.py holds the same table.
enum class Dtype : int { f32 = 0, f64 = 1, bf16 = 2, f16 = 3 };

// A (rows, cols) matrix that is read in place; strides in elements, any sign, zero included.
struct MatrixView {
    const void* data;
    Dtype dtype;
    std::int64_t rows;
    std::int64_t cols;
    std::int64_t row_stride;
    std::int64_t col_stride;
};

}  // namespace slimfast
