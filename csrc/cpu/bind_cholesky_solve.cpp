// cholesky_solve for Python.
#include "binding.hpp"
#include "cholesky_solve.hpp"

namespace slimfast {
namespace cholesky_solve_binding {

// (matrix, right-hand side, damping, address of the solution)
using PySystem = std::tuple<PyMatrix, PyMatrix, double, i64>;

std::vector<i64> run(const std::vector<PySystem>& systems, int threads, const std::string& isa) {
    std::vector<DampedSystem> tasks;
    tasks.reserve(systems.size());
    for (const auto& [a, b, damping, solution] : systems) {
        tasks.push_back({matrix_view(a), matrix_view(b), damping, pointer(solution), 0});
    }
    const Isa chosen = find_isa(isa);
    {
        pybind11::gil_scoped_release release;
        cholesky_solve(tasks, threads, chosen);
    }
    std::vector<i64> failures;
    failures.reserve(tasks.size());
    for (const DampedSystem& task : tasks) failures.push_back(task.failure);
    return failures;
}

}  // namespace cholesky_solve_binding

void bind_cholesky_solve(pybind11::module_& module) {
    using pybind11::arg;
    module.def("cholesky_solve", &cholesky_solve_binding::run, arg("systems"), arg("threads"),
               arg("isa") = "", pybind11::pos_only());
}

}  // namespace slimfast
