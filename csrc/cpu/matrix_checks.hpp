// What the ops that take symmetric matrices ask of them.
#pragma once

#include "../common/check.hpp"
#include "matrix_view.hpp"

namespace slimfast {

inline bool is_float32_or_float64(Dtype dtype) {
    return dtype == Dtype::kFloat32 || dtype == Dtype::kFloat64;
}

// Throws std::invalid_argument unless `a` is square, not empty, and of one of the types that `op` takes.
inline void require_symmetric(const char* op, const MatrixView& a) {
    require(a.rows > 0 && a.rows == a.cols, op, ": expected a square matrix, got ", a.rows, " x ", a.cols);
    require(is_float32_or_float64(a.dtype), op, ": expected an f32 or f64 matrix");
}

}  // namespace slimfast
