// The launches of cholesky_solve for Python.
#include "binding.hpp"
#include "cholesky_solve.hpp"

namespace slimfast::cuda {
namespace {

using Launch = void (*)(Stream, const i64*, const i64*, int, i64);
using StepLaunch = void (*)(Stream, const i64*, const i64*, int, i64, i64);

void bind(py::module_& module, const char* name, Launch launch) {
    module.def(
        name,
        [launch](int device, Address stream, Address systems, Address starts, int count, i64 blocks) {
            launch({device, stream}, table_at(systems), table_at(starts), count, blocks);
        },
        FreeGil());
}

void bind(py::module_& module, const char* name, StepLaunch launch) {
    module.def(
        name,
        [launch](int device, Address stream, Address systems, Address starts, int count, i64 blocks,
                 i64 step) {
            launch({device, stream}, table_at(systems), table_at(starts), count, blocks, step);
        },
        FreeGil());
}

}  // namespace

void bind_cholesky_solve(py::module_& module) {
    bind(module, "solve_load", solve_load);
    bind(module, "solve_panel", solve_panel);
    bind(module, "solve_update", solve_update);
    bind(module, "solve_backward", solve_backward);
    bind(module, "solve_store", solve_store);
}

}  // namespace slimfast::cuda
