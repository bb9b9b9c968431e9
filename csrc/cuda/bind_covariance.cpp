// The launches of covariance for Python.
#include "binding.hpp"
#include "covariance.hpp"

namespace slimfast::cuda {

void bind_covariance(py::module_& module) {
    module.attr("COVARIANCE_SMALL_TILE") = kCovarianceSmallTile;
    module.attr("COVARIANCE_LARGE_TILE") = kCovarianceLargeTile;
    module.attr("COVARIANCE_CHUNK") = kCovarianceChunk;
    module.attr("COVARIANCE_FINISH_ROWS") = kCovarianceFinishRows;
    module.attr("MOMENT_ROWS") = kMomentRows;

    module.def(
        "row_moments",
        [](int device, Address stream, Address table, int count, i64 blocks, Address means, Address squares) {
            row_moments({device, stream}, table_at(table), count, blocks, pointer<double>(means),
                        pointer<double>(squares));
        },
        FreeGil());
    module.def(
        "covariance_traces",
        [](int device, Address stream, Address layers, int count, Address squares, Address traces) {
            covariance_traces({device, stream}, table_at(layers), count, pointer<const double>(squares),
                              pointer<double>(traces));
        },
        FreeGil());
    module.def(
        "covariance_tiles",
        [](int device, Address stream, Address table, int count, i64 blocks, bool in_double, int tile,
           Address means, Address workspace) {
            covariance_tiles({device, stream}, table_at(table), count, blocks, in_double, tile,
                             pointer<const double>(means), pointer<void>(workspace));
        },
        FreeGil());
    module.def(
        "covariance_finish",
        [](int device, Address stream, Address table, int count, i64 blocks, bool in_double, int tile,
           Address workspace) {
            covariance_finish({device, stream}, table_at(table), count, blocks, in_double, tile,
                              pointer<const void>(workspace));
        },
        FreeGil());
    module.def("covariance_shared_bytes", covariance_shared_bytes);
}

}  // namespace slimfast::cuda
