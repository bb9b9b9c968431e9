// gather for Python.
#include "binding.hpp"
#include "gather.hpp"

namespace slimfast {
namespace gather_binding {

// (address, address of the result, bytes of an element, dims: (size, stride, address of the indices or 0))
using PyTensor = std::tuple<i64, i64, i64, std::vector<std::tuple<i64, i64, i64>>>;

void run(const std::vector<PyTensor>& tensors, int threads) {
    std::vector<GatherTask> tasks;
    tasks.reserve(tensors.size());
    for (const auto& [data, out, element_bytes, dims] : tensors) {
        GatherTask task{pointer<char>(data), pointer<char>(out), element_bytes, {}};
        for (const auto& [size, stride, index] : dims)
            task.dims.push_back({size, stride, pointer<i64>(index)});
        tasks.push_back(std::move(task));
    }
    pybind11::gil_scoped_release release;
    gather(std::move(tasks), threads);
}

}  // namespace gather_binding

void bind_gather(pybind11::module_& module) {
    module.def("gather", &gather_binding::run, pybind11::arg("tensors"), pybind11::arg("threads"),
               pybind11::pos_only());
}

}  // namespace slimfast
