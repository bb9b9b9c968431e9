// pivoted_cholesky for Python.
#include "binding.hpp"
#include "pivoted_cholesky.hpp"

namespace slimfast {
namespace pivoted_cholesky_binding {

// (matrix, rank, addresses of order, transposed factor and residual)
using PyTask = std::tuple<PyMatrix, i64, i64, i64, i64>;

std::vector<i64> run(const std::vector<PyTask>& matrices, int threads, const std::string& isa) {
    std::vector<CholeskyTask> tasks;
    tasks.reserve(matrices.size());
    for (const auto& [a, rank, order, factor, residual] : matrices) {
        tasks.push_back({matrix_view(a), rank, pointer<i64>(order), pointer(factor), pointer(residual), 0});
    }
    const Isa chosen = find_isa(isa);
    {
        pybind11::gil_scoped_release release;
        pivoted_cholesky(tasks, threads, chosen);
    }
    std::vector<i64> picked;
    picked.reserve(tasks.size());
    for (const CholeskyTask& task : tasks) picked.push_back(task.picked);
    return picked;
}

}  // namespace pivoted_cholesky_binding

void bind_pivoted_cholesky(pybind11::module_& module) {
    using pybind11::arg;
    module.def("pivoted_cholesky", &pivoted_cholesky_binding::run, arg("matrices"), arg("threads"),
               arg("isa") = "", pybind11::pos_only());
}

}  // namespace slimfast
