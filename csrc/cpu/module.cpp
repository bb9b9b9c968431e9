// slimfast._cpu: addresses, sizes and strides in elements in; the GIL is released while the kernels run.
#include "binding.hpp"

PYBIND11_MODULE(SLIMFAST_MODULE, module) {
    module.doc() = "The C++ CPU kernels of slimfast; called by slimfast.kernels.backends.cpu only.";
    slimfast::bind_isa(module);
#define OP(name) slimfast::bind_##name(module);
#include "ops.def"
}
