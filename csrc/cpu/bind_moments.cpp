// moments, of activations and of patches, for Python.
#include <array>

#include "binding.hpp"
#include "moments.hpp"

namespace slimfast {
namespace moments_binding {

// (address, dtype, variables, stride of the variables)
using PyOperand = std::tuple<i64, int, i64, i64>;
// (size, stride in x, in y, in the mask)
using PyDim = std::tuple<i64, i64, i64, i64>;
// (positions so far, addresses of the means of x and, or 0, of y, and of the products)
using PySums = std::tuple<i64, i64, i64, i64>;
// (x, y, dims of the positions, address of the mask or 0, products in float64, sums)
using PyLayer = std::tuple<PyOperand, PyOperand, std::vector<PyDim>, i64, bool, PySums>;

MomentOperand operand(const PyOperand& from) {
    const auto& [address, dtype, variables, stride] = from;
    return {pointer(address), static_cast<Dtype>(dtype), variables, stride};
}

std::vector<i64> counts_of(std::vector<MomentLayer>& tasks, int threads, const std::string& isa) {
    const Isa chosen = find_isa(isa);
    {
        pybind11::gil_scoped_release release;
        moments(tasks, threads, chosen);
    }
    std::vector<i64> counts;
    counts.reserve(tasks.size());
    for (const MomentLayer& task : tasks) counts.push_back(task.sums.count);
    return counts;
}

std::vector<i64> run(const std::vector<PyLayer>& layers, int threads, const std::string& isa) {
    std::vector<MomentLayer> tasks;
    tasks.reserve(layers.size());
    for (const auto& [x, y, dims, mask, in_double, sums] : layers) {
        const auto& [count, mean_x, mean_y, products] = sums;
        MomentLayer task{
            operand(x), operand(y),
            {},         pointer<unsigned char>(mask),
            in_double,  {count, pointer<double>(mean_x), pointer<double>(mean_y), pointer<double>(products)},
            {}};
        for (const auto& [size, in_x, in_y, in_mask] : dims) task.dims.push_back({size, in_x, in_y, in_mask});
        tasks.push_back(std::move(task));
    }
    return counts_of(tasks, threads, isa);
}

// (size, stride, kernel, step, padding, dilation, outputs)
using PyPatchDim = std::tuple<i64, i64, i64, i64, i64, i64, i64>;
// (address, dtype, samples, their stride, channels, their stride, three dims)
using PyPatches = std::tuple<i64, int, i64, i64, i64, i64, std::array<PyPatchDim, 3>>;
// (patches of a group, products in float64, sums)
using PyPatchLayer = std::tuple<PyPatches, bool, PySums>;

std::vector<i64> run_patches(const std::vector<PyPatchLayer>& layers, int threads, const std::string& isa) {
    std::vector<MomentLayer> tasks;
    tasks.reserve(layers.size());
    for (const auto& [from, in_double, sums] : layers) {
        const auto& [address, dtype, samples, sample_stride, channels, channel_stride, dims] = from;
        const auto& [count, mean, none, products] = sums;
        const Dtype type = static_cast<Dtype>(dtype);
        Patches patches{pointer(address), element_bytes(type), samples, sample_stride, channel_stride, {}};
        for (int i = 0; i < 3; ++i) {
            const auto& [size, stride, kernel, step, padding, dilation, outputs] = dims[i];
            patches.dims[i] = {size, stride, kernel, step, padding, dilation, outputs};
        }
        const MomentOperand x{nullptr, type, channels * patches.taps(), 0};
        tasks.push_back({x,
                         x,
                         {},
                         nullptr,
                         in_double,
                         {count, pointer<double>(mean), pointer<double>(none), pointer<double>(products)},
                         patches});
    }
    return counts_of(tasks, threads, isa);
}

}  // namespace moments_binding

void bind_moments(pybind11::module_& module) {
    using pybind11::arg;
    module.def("moments", &moments_binding::run, arg("layers"), arg("threads"), arg("isa") = "",
               pybind11::pos_only());
    module.def("patch_moments", &moments_binding::run_patches, arg("layers"), arg("threads"), arg("isa") = "",
               pybind11::pos_only());
}

}  // namespace slimfast
