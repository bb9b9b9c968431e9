// What a device allows a launch, for Python.
#include "binding.hpp"

namespace slimfast::cuda {

void bind_device(py::module_& module) {
    module.def("device_limits", [](int device) {
        const DeviceLimits limits = device_limits(device);
        return py::make_tuple(limits.shared_bytes, limits.clusters);
    });
}

}  // namespace slimfast::cuda
