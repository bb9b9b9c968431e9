// The launches of eigvalsh for Python.
#include "binding.hpp"
#include "eigvalsh.hpp"

namespace slimfast::cuda {

void bind_eigvalsh(py::module_& module) {
    module.attr("WARP_MATRIX") = kWarpMatrix;
    module.attr("MAX_CLUSTER") = kMaxCluster;
    module.attr("STURM_VALUES") = kSturmValues;

    module.def(
        "eigvalsh_warp",
        [](int device, Address stream, Address layers, int count, bool is_double) {
            eigvalsh_warp({device, stream}, table_at(layers), count, is_double);
        },
        FreeGil());
    module.def(
        "tridiagonalise",
        [](int device, Address stream, Address layers, int count, bool is_double, i64 largest,
           unsigned cluster) {
            tridiagonalise({device, stream}, table_at(layers), count, is_double, largest, cluster);
        },
        FreeGil());
    module.def(
        "reduce_to_band",
        [](int device, Address stream, Address layers, const std::vector<i64>& sizes, bool is_double,
           unsigned cluster) {
            reduce_to_band({device, stream}, table_at(layers), sizes, is_double, cluster);
        },
        FreeGil());
    module.def(
        "chase_bulges",
        [](int device, Address stream, Address layers, int count, bool is_double, unsigned cluster,
           unsigned warps) {
            chase_bulges({device, stream}, table_at(layers), count, is_double, cluster, warps);
        },
        FreeGil());
    module.def(
        "sturm_eigenvalues",
        [](int device, Address stream, Address table, int count, i64 blocks, bool is_double, i64 largest) {
            sturm_eigenvalues({device, stream}, table_at(table), count, blocks, is_double, largest);
        },
        FreeGil());
    module.def("tridiagonalise_shared_bytes", tridiagonalise_shared_bytes);
    module.def("panel_rows", panel_rows);
    module.def("chase_warps", chase_warps);
    module.def("band_workspace_bytes", band_workspace_bytes);
}

}  // namespace slimfast::cuda
