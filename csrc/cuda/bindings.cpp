// slimfast._cuda: the kernels' entries for Python. Pointers and places are integers, a stream is (device,
// handle), and what a table holds is said in the op's header. Built against the CPU header, the same module
// is slimfast._cuda_emulated, with the emulation's controls.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <tuple>

#include "covariance.hpp"
#include "eigvalsh.hpp"
#include "gather.hpp"
#include "pivoted_cholesky.hpp"

#ifdef SLIMFAST_CUDA_EMULATION
#include "emulation/cuda_on_cpu.hpp"
#define SLIMFAST_MODULE _cuda_emulated
#else
#define SLIMFAST_MODULE _cuda
#endif

namespace py = pybind11;
namespace cuda = slimfast::cuda;
using slimfast::i64;

namespace {

using Address = std::uintptr_t;
using Free = py::call_guard<py::gil_scoped_release>;

template <class T>
T* pointer(Address address) {
    return reinterpret_cast<T*>(address);
}

const i64* table_at(Address address) { return pointer<const i64>(address); }

// (size, stride, number of the indices or -1) of a dim; (source, target, bytes of an element, dims); (first
// index, count).
using PyGatherDim = std::tuple<i64, i64, int>;
using PyGatherTensor = std::tuple<Address, Address, i64, std::vector<PyGatherDim>>;
using PyGatherIndices = std::tuple<Address, i64>;

cuda::GatherTable gather_table(const std::vector<PyGatherTensor>& tensors,
                               const std::vector<PyGatherIndices>& indices) {
    std::vector<cuda::GatherTensor> described;
    described.reserve(tensors.size());
    for (const auto& [source, target, element_bytes, dims] : tensors) {
        described.push_back({source, target, element_bytes, {}});
        for (const auto& [size, stride, kept] : dims) described.back().dims.push_back({size, stride, kept});
    }
    std::vector<cuda::GatherIndices> kept;
    for (const auto& [first, count] : indices) kept.push_back({pointer<const i64>(first), count});
    return cuda::gather_table(described, kept);
}

#ifdef SLIMFAST_CUDA_EMULATION
void set_order(const std::string& order, std::uint64_t seed) {
    using emulation::Order;
    if (order != "forward" && order != "reverse" && order != "shuffled") {
        throw py::value_error("order: expected forward, reverse or shuffled, got " + order);
    }
    emulation::settings().order =
        order == "forward" ? Order::kForward : (order == "reverse" ? Order::kReverse : Order::kShuffled);
    emulation::settings().seed = seed;
}

void bind_emulation(py::module_& module) {
    // Places in a table's rows, which tests look at.
    module.attr("GATHER_TARGET") = static_cast<int>(cuda::kGatherTarget);
    module.attr("GATHER_UNIT_BYTES") = static_cast<int>(cuda::kGatherUnitBytes);
    module.attr("GATHER_ROWS") = static_cast<int>(cuda::kGatherRows);
    module.attr("GATHER_COLUMNS") = static_cast<int>(cuda::kGatherColumns);
    module.attr("GATHER_DIVISORS") = static_cast<int>(cuda::kGatherDivisors);
    module.attr("GATHER_FIELDS") = static_cast<int>(cuda::kGatherFields);
    module.def("set_order", set_order, py::arg("order"), py::arg("seed") = 1);
    module.def("skip_barrier", [](const std::string& site) { emulation::settings().skip = site; });
    module.def("take_barrier_sites", emulation::take_barrier_sites);
    module.def("set_device", [](std::size_t shared_bytes, bool clusters) {
        emulation::settings().shared_limit = shared_bytes;
        emulation::settings().clusters = clusters;
    });
}
#endif

}  // namespace

PYBIND11_MODULE(SLIMFAST_MODULE, module) {
    module.doc() = "CUDA kernels of slimfast; see slimfast/_cuda.pyi";

    module.attr("COVARIANCE_SMALL_TILE") = cuda::kCovarianceSmallTile;
    module.attr("COVARIANCE_LARGE_TILE") = cuda::kCovarianceLargeTile;
    module.attr("COVARIANCE_CHUNK") = cuda::kCovarianceChunk;
    module.attr("COVARIANCE_FINISH_ROWS") = cuda::kCovarianceFinishRows;
    module.attr("MOMENT_ROWS") = cuda::kMomentRows;
    module.attr("WARP_MATRIX") = cuda::kWarpMatrix;
    module.attr("MAX_CLUSTER") = cuda::kMaxCluster;
    module.attr("STURM_VALUES") = cuda::kSturmValues;

    module.def("device_limits", [](int device) {
        const cuda::DeviceLimits limits = cuda::device_limits(device);
        return py::make_tuple(limits.shared_bytes, limits.clusters);
    });
    // Local, so that the module and its emulation load into one process.
    py::class_<cuda::GatherTable>(module, "GatherTable", py::module_local())
        .def(py::init(&gather_table), py::arg("tensors"), py::arg("indices"))
        .def_readonly("count", &cuda::GatherTable::count)
        .def_readonly("tiles", &cuda::GatherTable::tiles)
        .def("__len__", [](const cuda::GatherTable& table) { return table.numbers.size(); })
        .def("write", [](const cuda::GatherTable& table, Address to) {
            std::copy(table.numbers.begin(), table.numbers.end(), pointer<i64>(to));
        });
    module.def(
        "gather",
        [](int device, Address stream, Address table, int count, i64 tiles) {
            cuda::gather({device, stream}, table_at(table), count, tiles);
        },
        Free());
    module.def(
        "row_moments",
        [](int device, Address stream, Address table, int count, i64 blocks, Address means, Address squares) {
            cuda::row_moments({device, stream}, table_at(table), count, blocks, pointer<double>(means),
                              pointer<double>(squares));
        },
        Free());
    module.def(
        "covariance_traces",
        [](int device, Address stream, Address layers, int count, Address squares, Address traces) {
            cuda::covariance_traces({device, stream}, table_at(layers), count, pointer<const double>(squares),
                                    pointer<double>(traces));
        },
        Free());
    module.def(
        "covariance_tiles",
        [](int device, Address stream, Address table, int count, i64 blocks, bool in_double, int tile,
           Address means, Address workspace) {
            cuda::covariance_tiles({device, stream}, table_at(table), count, blocks, in_double, tile,
                                   pointer<const double>(means), pointer<void>(workspace));
        },
        Free());
    module.def(
        "covariance_finish",
        [](int device, Address stream, Address table, int count, i64 blocks, bool in_double, int tile,
           Address workspace) {
            cuda::covariance_finish({device, stream}, table_at(table), count, blocks, in_double, tile,
                                    pointer<const void>(workspace));
        },
        Free());
    module.def("covariance_shared_bytes", cuda::covariance_shared_bytes);
    module.def(
        "eigvalsh_warp",
        [](int device, Address stream, Address layers, int count, bool is_double) {
            cuda::eigvalsh_warp({device, stream}, table_at(layers), count, is_double);
        },
        Free());
    module.def(
        "tridiagonalise",
        [](int device, Address stream, Address layers, int count, bool is_double, i64 largest,
           unsigned cluster) {
            cuda::tridiagonalise({device, stream}, table_at(layers), count, is_double, largest, cluster);
        },
        Free());
    module.def(
        "reduce_to_band",
        [](int device, Address stream, Address layers, const std::vector<i64>& sizes, bool is_double,
           unsigned cluster) {
            cuda::reduce_to_band({device, stream}, table_at(layers), sizes, is_double, cluster);
        },
        Free());
    module.def(
        "chase_bulges",
        [](int device, Address stream, Address layers, int count, bool is_double, unsigned cluster,
           unsigned warps) {
            cuda::chase_bulges({device, stream}, table_at(layers), count, is_double, cluster, warps);
        },
        Free());
    module.def(
        "sturm_eigenvalues",
        [](int device, Address stream, Address table, int count, i64 blocks, bool is_double, i64 largest) {
            cuda::sturm_eigenvalues({device, stream}, table_at(table), count, blocks, is_double, largest);
        },
        Free());
    module.def("tridiagonalise_shared_bytes", cuda::tridiagonalise_shared_bytes);
    module.def("panel_rows", cuda::panel_rows);
    module.def("chase_warps", cuda::chase_warps);
    module.def("band_workspace_bytes", cuda::band_workspace_bytes);
    module.def(
        "pivoted_cholesky",
        [](int device, Address stream, Address layers, int count, int shared, unsigned cluster) {
            cuda::pivoted_cholesky({device, stream}, table_at(layers), count, shared, cluster);
        },
        Free());
#ifdef SLIMFAST_CUDA_EMULATION
    bind_emulation(module);
#endif
}
