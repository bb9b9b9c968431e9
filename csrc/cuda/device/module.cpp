// slimfast._cuda: the CUDA kernels, compiled by nvcc.
#include "../binding.hpp"

PYBIND11_MODULE(_cuda, module) {
    module.doc() = "CUDA kernels of slimfast; see slimfast/_cuda.pyi";
    slimfast::cuda::bind_kernels(module);
}
