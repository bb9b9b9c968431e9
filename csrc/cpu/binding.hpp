// What the bindings of slimfast._cpu share; each op has its own in bind_<op>.cpp.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>

#include "matrix_view.hpp"

namespace slimfast {

void bind_isa(pybind11::module_& module);
#define OP(name) void bind_##name(pybind11::module_& module);
#include "ops.def"

// (address, dtype, rows, columns, row stride, column stride)
using PyMatrix = std::tuple<i64, int, i64, i64, i64, i64>;

template <class T = void>
T* pointer(i64 address) {
    return reinterpret_cast<T*>(static_cast<std::intptr_t>(address));
}

inline MatrixView matrix_view(const PyMatrix& matrix) {
    const auto& [address, dtype, rows, cols, row_stride, col_stride] = matrix;
    return {pointer(address), static_cast<Dtype>(dtype), rows, cols, row_stride, col_stride};
}

}  // namespace slimfast
