// The launches of streaming moments for Python.
#include "binding.hpp"
#include "moments.hpp"

namespace slimfast::cuda {

void bind_moments(py::module_& module) {
    module.attr("MEAN_VARIABLES") = kMeanVariables;
    module.attr("JOIN_VARIABLES") = kJoinVariables;
    module.attr("MOMENT_FINISH_ROWS") = kMomentFinishRows;

    module.def(
        "moment_sums",
        [](int device, Address stream, Address table, int count, i64 blocks, Address sums) {
            moment_sums({device, stream}, table_at(table), count, blocks, pointer<double>(sums));
        },
        FreeGil());
    module.def(
        "moment_means",
        [](int device, Address stream, Address table, int count, i64 blocks, Address sums, Address means,
           Address apart) {
            moment_means({device, stream}, table_at(table), count, blocks, pointer<const double>(sums),
                         pointer<double>(means), pointer<double>(apart));
        },
        FreeGil());
    module.def(
        "moment_tiles",
        [](int device, Address stream, Address table, int count, i64 blocks, bool in_double, int tile,
           Address means, Address workspace) {
            moment_tiles({device, stream}, table_at(table), count, blocks, in_double, tile,
                         pointer<const double>(means), pointer<double>(workspace));
        },
        FreeGil());
    module.def(
        "moment_finish",
        [](int device, Address stream, Address table, int count, i64 blocks, int tile, Address apart,
           Address workspace) {
            moment_finish({device, stream}, table_at(table), count, blocks, tile,
                          pointer<const double>(apart), pointer<const double>(workspace));
        },
        FreeGil());
    module.def("moment_shared_bytes", moment_shared_bytes);
}

}  // namespace slimfast::cuda
