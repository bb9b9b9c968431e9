// slimfast._cpu: addresses, sizes and strides in elements in; the GIL is released while the kernels run.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "covariance.hpp"
#include "eigvalsh.hpp"
#include "gather.hpp"
#include "isa.hpp"
#include "pivoted_cholesky.hpp"

namespace py = pybind11;

namespace {

using namespace slimfast;
// (address, dtype, rows, cols, row stride, column stride)
using View = std::tuple<i64, int, i64, i64, i64, i64>;

template <class T = void>
T* pointer(i64 address) {
    return reinterpret_cast<T*>(static_cast<std::intptr_t>(address));
}

MatrixView view(const View& v) {
    return {pointer(std::get<0>(v)), static_cast<Dtype>(std::get<1>(v)),
            std::get<2>(v),          std::get<3>(v),
            std::get<4>(v),          std::get<5>(v)};
}

std::vector<double> run_covariance(const std::vector<std::tuple<std::vector<View>, bool, int, i64>>& layers,
                                   int threads, const std::string& isa) {
    std::vector<CovarianceLayer> tasks;
    tasks.reserve(layers.size());
    for (const auto& [members, by_rows, result, out] : layers) {
        CovarianceLayer task{{}, by_rows, static_cast<Dtype>(result), pointer(out)};
        for (const View& member : members) task.members.push_back(view(member));
        tasks.push_back(std::move(task));
    }
    std::vector<double> traces(tasks.size());
    const Isa chosen = find_isa(isa);
    py::gil_scoped_release release;
    covariance(tasks, traces.data(), threads, chosen);
    return traces;
}

void run_eigvalsh(const std::vector<std::tuple<View, i64>>& matrices, int threads, const std::string& isa) {
    std::vector<SymmetricMatrix> tasks;
    tasks.reserve(matrices.size());
    for (const auto& [a, values] : matrices) tasks.push_back({view(a), pointer(values)});
    const Isa chosen = find_isa(isa);
    py::gil_scoped_release release;
    eigvalsh(tasks, threads, chosen);
}

// A (count, m, m) stack, and its (count, m) eigenvalues one after another.
void run_eigvalsh_stacked(const View& first, i64 count, i64 stride, i64 values, int threads,
                          const std::string& isa) {
    const MatrixView a = view(first);
    const i64 bytes = element_bytes(a.dtype);
    std::vector<SymmetricMatrix> tasks;
    tasks.reserve(count);
    for (i64 i = 0; i < count; ++i) {
        tasks.push_back({a, pointer(values + i * a.rows * bytes)});
        tasks.back().a.data = static_cast<const char*>(a.data) + i * stride * bytes;
    }
    const Isa chosen = find_isa(isa);
    py::gil_scoped_release release;
    eigvalsh(tasks, threads, chosen);
}

std::vector<i64> run_pivoted_cholesky(const std::vector<std::tuple<View, i64, i64, i64, i64>>& matrices,
                                      int threads, const std::string& isa) {
    std::vector<CholeskyTask> tasks;
    tasks.reserve(matrices.size());
    for (const auto& [a, rank, order, factor, residual] : matrices) {
        tasks.push_back({view(a), rank, pointer<i64>(order), pointer(factor), pointer(residual), 0});
    }
    const Isa chosen = find_isa(isa);
    {
        py::gil_scoped_release release;
        pivoted_cholesky(tasks, threads, chosen);
    }
    std::vector<i64> picked;
    picked.reserve(tasks.size());
    for (const CholeskyTask& task : tasks) picked.push_back(task.picked);
    return picked;
}

void run_gather(const std::vector<std::tuple<i64, i64, i64, std::vector<std::tuple<i64, i64, i64>>>>& tensors,
                int threads) {
    std::vector<GatherTask> tasks;
    tasks.reserve(tensors.size());
    for (const auto& [data, out, element_bytes, dims] : tensors) {
        GatherTask task{pointer<char>(data), pointer<char>(out), element_bytes, {}};
        for (const auto& [size, stride, index] : dims)
            task.dims.push_back({size, stride, pointer<i64>(index)});
        tasks.push_back(std::move(task));
    }
    py::gil_scoped_release release;
    gather(std::move(tasks), threads);
}

std::string widest_isa() { return name(default_isa()); }

std::vector<std::string> isa_names() {
    std::vector<std::string> names;
    for (Isa isa : available_isas()) names.emplace_back(name(isa));
    return names;
}

}  // namespace

#ifndef SLIMFAST_MODULE
#define SLIMFAST_MODULE _cpu
#endif
PYBIND11_MODULE(SLIMFAST_MODULE, m) {
    m.doc() = "The C++ CPU kernels of slimfast; called by slimfast.kernels.backends.cpu only.";
    m.def("isa", &widest_isa, "The instruction set that the kernels run with.");
    m.def("available_isas", &isa_names, "The instruction sets that this machine can run, the widest last.");
    m.def("covariance", &run_covariance, py::arg("layers"), py::arg("threads"), py::arg("isa") = "",
          py::pos_only());
    m.def("eigvalsh", &run_eigvalsh, py::arg("matrices"), py::arg("threads"), py::arg("isa") = "",
          py::pos_only());
    m.def("eigvalsh_stacked", &run_eigvalsh_stacked, py::arg("first"), py::arg("count"), py::arg("stride"),
          py::arg("values"), py::arg("threads"), py::arg("isa") = "", py::pos_only());
    m.def("pivoted_cholesky", &run_pivoted_cholesky, py::arg("matrices"), py::arg("threads"),
          py::arg("isa") = "", py::pos_only());
    m.def("gather", &run_gather, py::arg("tensors"), py::arg("threads"), py::pos_only());
}
