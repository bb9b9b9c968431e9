// The table of a gather and its launch, for Python.
#include <algorithm>
#include <tuple>

#include "binding.hpp"
#include "gather.hpp"

namespace slimfast::cuda {
namespace {

// (size, stride, number of the indices or -1)
using PyDim = std::tuple<i64, i64, int>;
// (source, target, bytes of an element, dims)
using PyTensor = std::tuple<Address, Address, i64, std::vector<PyDim>>;
// (first index, count)
using PyIndices = std::tuple<Address, i64>;

GatherTable make_table(const std::vector<PyTensor>& tensors, const std::vector<PyIndices>& indices) {
    std::vector<GatherTensor> described;
    described.reserve(tensors.size());
    for (const auto& [source, target, element_bytes, dims] : tensors) {
        described.push_back({source, target, element_bytes, {}});
        for (const auto& [size, stride, kept] : dims) described.back().dims.push_back({size, stride, kept});
    }
    std::vector<GatherIndices> kept;
    for (const auto& [first, count] : indices) kept.push_back({pointer<const i64>(first), count});
    return gather_table(described, kept);
}

}  // namespace

void bind_gather(py::module_& module) {
    // Local, so that the module and its emulation load into one process.
    py::class_<GatherTable>(module, "GatherTable", py::module_local())
        .def(py::init(&make_table), py::arg("tensors"), py::arg("indices"))
        .def_readonly("count", &GatherTable::count)
        .def_readonly("tiles", &GatherTable::tiles)
        .def("__len__", [](const GatherTable& table) { return table.numbers.size(); })
        .def("write", [](const GatherTable& table, Address to) {
            std::copy(table.numbers.begin(), table.numbers.end(), pointer<i64>(to));
        });
    module.def(
        "gather",
        [](int device, Address stream, Address table, int count, i64 tiles) {
            gather({device, stream}, table_at(table), count, tiles);
        },
        FreeGil());
}

}  // namespace slimfast::cuda
