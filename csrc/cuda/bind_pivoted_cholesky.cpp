// The launch of pivoted_cholesky for Python.
#include "binding.hpp"
#include "pivoted_cholesky.hpp"

namespace slimfast::cuda {

void bind_pivoted_cholesky(py::module_& module) {
    module.def(
        "pivoted_cholesky",
        [](int device, Address stream, Address layers, int count, int shared, unsigned cluster) {
            pivoted_cholesky({device, stream}, table_at(layers), count, shared, cluster);
        },
        FreeGil());
}

}  // namespace slimfast::cuda
