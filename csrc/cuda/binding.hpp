// What the bindings of slimfast._cuda share: each op's is a function here and a file bind_<op>.cpp.
//
// Pointers and places are integers, a stream is (device, handle), and what a table holds is said in the op's
// header.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "stream.hpp"

namespace slimfast::cuda {

namespace py = pybind11;

// All of the below, for the module of a GPU and the emulated one.
void bind_kernels(py::module_& module);

void bind_device(py::module_& module);
void bind_covariance(py::module_& module);
void bind_eigvalsh(py::module_& module);
void bind_pivoted_cholesky(py::module_& module);
void bind_gather(py::module_& module);

using Address = std::uintptr_t;
using FreeGil = py::call_guard<py::gil_scoped_release>;

template <class T>
T* pointer(Address address) {
    return reinterpret_cast<T*>(address);
}

inline const i64* table_at(Address address) { return pointer<const i64>(address); }

}  // namespace slimfast::cuda
