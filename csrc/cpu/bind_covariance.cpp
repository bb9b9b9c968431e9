// covariance for Python.
#include "binding.hpp"
#include "covariance.hpp"

namespace slimfast {
namespace covariance_binding {

// (members, by rows, dtype of the result, address of the result)
using PyLayer = std::tuple<std::vector<PyMatrix>, bool, int, i64>;

std::vector<double> run(const std::vector<PyLayer>& layers, int threads, const std::string& isa) {
    std::vector<CovarianceLayer> tasks;
    tasks.reserve(layers.size());
    for (const auto& [members, by_rows, result, out] : layers) {
        CovarianceLayer task{{}, by_rows, static_cast<Dtype>(result), pointer(out)};
        for (const PyMatrix& member : members) task.members.push_back(matrix_view(member));
        tasks.push_back(std::move(task));
    }
    std::vector<double> traces(tasks.size());
    const Isa chosen = find_isa(isa);
    pybind11::gil_scoped_release release;
    covariance(tasks, traces.data(), threads, chosen);
    return traces;
}

}  // namespace covariance_binding

void bind_covariance(pybind11::module_& module) {
    using pybind11::arg;
    module.def("covariance", &covariance_binding::run, arg("layers"), arg("threads"), arg("isa") = "",
               pybind11::pos_only());
}

}  // namespace slimfast
