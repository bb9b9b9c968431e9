// slimfast._cuda_emulated: the CUDA kernels run on the CPU, and the controls of the emulation.
#include "../binding.hpp"
#include "../gather.hpp"
#include "cuda_on_cpu.hpp"

namespace {

namespace py = pybind11;
namespace cuda = slimfast::cuda;

void set_order(const std::string& order, std::uint64_t seed) {
    using emulation::Order;
    if (order != "forward" && order != "reverse" && order != "shuffled") {
        throw py::value_error("order: expected forward, reverse or shuffled, got " + order);
    }
    emulation::settings().order =
        order == "forward" ? Order::kForward : (order == "reverse" ? Order::kReverse : Order::kShuffled);
    emulation::settings().seed = seed;
}

void bind_controls(py::module_& module) {
    module.def("set_order", set_order, py::arg("order"), py::arg("seed") = 1);
    module.def("skip_barrier", [](const std::string& site) { emulation::settings().skip = site; });
    module.def("take_barrier_sites", emulation::take_barrier_sites);
    module.def("set_device", [](std::size_t shared_bytes, bool clusters) {
        emulation::settings().shared_limit = shared_bytes;
        emulation::settings().clusters = clusters;
    });
}

// Places in the rows of a gather's table, which tests look at.
void bind_places(py::module_& module) {
    module.attr("GATHER_TARGET") = static_cast<int>(cuda::kGatherTarget);
    module.attr("GATHER_UNIT_BYTES") = static_cast<int>(cuda::kGatherUnitBytes);
    module.attr("GATHER_ROWS") = static_cast<int>(cuda::kGatherRows);
    module.attr("GATHER_COLUMNS") = static_cast<int>(cuda::kGatherColumns);
    module.attr("GATHER_DIVISORS") = static_cast<int>(cuda::kGatherDivisors);
    module.attr("GATHER_FIELDS") = static_cast<int>(cuda::kGatherFields);
}

}  // namespace

PYBIND11_MODULE(_cuda_emulated, module) {
    module.doc() = "CUDA kernels of slimfast; see slimfast/_cuda.pyi";
    cuda::bind_kernels(module);
    bind_controls(module);
    bind_places(module);
}
