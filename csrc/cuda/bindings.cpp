// What slimfast._cuda and slimfast._cuda_emulated both have for Python.
#include "binding.hpp"

namespace slimfast::cuda {

void bind_kernels(py::module_& module) {
    bind_device(module);
    bind_covariance(module);
    bind_eigvalsh(module);
    bind_pivoted_cholesky(module);
    bind_gather(module);
}

}  // namespace slimfast::cuda
