// eigvalsh for Python, of matrices on their own and of stacks.
#include "binding.hpp"
#include "eigvalsh.hpp"

namespace slimfast {
namespace eigvalsh_binding {

void run_tasks(const std::vector<SymmetricMatrix>& tasks, int threads, const std::string& isa) {
    const Isa chosen = find_isa(isa);
    pybind11::gil_scoped_release release;
    eigvalsh(tasks, threads, chosen);
}

// (matrix, address of its eigenvalues)
void run(const std::vector<std::tuple<PyMatrix, i64>>& matrices, int threads, const std::string& isa) {
    std::vector<SymmetricMatrix> tasks;
    tasks.reserve(matrices.size());
    for (const auto& [a, values] : matrices) tasks.push_back({matrix_view(a), pointer(values)});
    run_tasks(tasks, threads, isa);
}

// A (count, m, m) stack, and its (count, m) eigenvalues one after another.
void run_stacked(const PyMatrix& first, i64 count, i64 stride, i64 values, int threads,
                 const std::string& isa) {
    const MatrixView a = matrix_view(first);
    const i64 bytes = element_bytes(a.dtype);
    std::vector<SymmetricMatrix> tasks;
    tasks.reserve(count);
    for (i64 i = 0; i < count; ++i) {
        tasks.push_back({a, pointer(values + i * a.rows * bytes)});
        tasks.back().a.data = static_cast<const char*>(a.data) + i * stride * bytes;
    }
    run_tasks(tasks, threads, isa);
}

}  // namespace eigvalsh_binding

void bind_eigvalsh(pybind11::module_& module) {
    using pybind11::arg;
    module.def("eigvalsh", &eigvalsh_binding::run, arg("matrices"), arg("threads"), arg("isa") = "",
               pybind11::pos_only());
    module.def("eigvalsh_stacked", &eigvalsh_binding::run_stacked, arg("first"), arg("count"), arg("stride"),
               arg("values"), arg("threads"), arg("isa") = "", pybind11::pos_only());
}

}  // namespace slimfast
