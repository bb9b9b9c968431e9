// What the bindings of slimfast._cpu share: each op's is a function here and a file bind_<op>.cpp.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>

#include "matrix_view.hpp"

namespace slimfast {

void bind_isa(pybind11::module_& module);
void bind_covariance(pybind11::module_& module);
void bind_eigvalsh(pybind11::module_& module);
void bind_pivoted_cholesky(pybind11::module_& module);
void bind_gather(pybind11::module_& module);

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
