// What the bindings of slimfast._cuda share; each op has its own in bind_<op>.cpp.
//
// Pointers and places are integers, a stream is (device, handle), and what a table holds is said in the op's
// header.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "stream.hpp"

namespace slimfast::cuda {

namespace py = pybind11;

// All that the module of a GPU and the emulated one have in common: what a device allows, and the ops.
void bind_kernels(py::module_& module);

#define OP(name) void bind_##name(py::module_& module);
#include "ops.def"

using Address = std::uintptr_t;
using FreeGil = py::call_guard<py::gil_scoped_release>;

template <class T>
T* pointer(Address address) {
    return reinterpret_cast<T*>(address);
}

inline const i64* table_at(Address address) { return pointer<const i64>(address); }

}  // namespace slimfast::cuda
