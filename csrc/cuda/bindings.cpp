// What slimfast._cuda and slimfast._cuda_emulated both have for Python.
#include "binding.hpp"

namespace slimfast::cuda {

void bind_kernels(py::module_& module) {
    module.def("device_limits", [](int device) {
        const DeviceLimits limits = device_limits(device);
        return py::make_tuple(limits.shared_bytes, limits.clusters);
    });
#define OP(name) bind_##name(module);
#include "ops.def"
}

}  // namespace slimfast::cuda
