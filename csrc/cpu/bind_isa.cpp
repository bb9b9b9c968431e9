// Which instruction sets there are, for Python.
#include "binding.hpp"
#include "isa.hpp"

namespace slimfast {
namespace isa_binding {

std::string isa() { return name(default_isa()); }

std::vector<std::string> isa_names() {
    std::vector<std::string> names;
    for (Isa available : available_isas()) names.emplace_back(name(available));
    return names;
}

}  // namespace isa_binding

void bind_isa(pybind11::module_& module) {
    module.def("isa", &isa_binding::isa, "The instruction set that the kernels run with.");
    module.def("available_isas", &isa_binding::isa_names,
               "The instruction sets that this machine can run, the widest last.");
}

}  // namespace slimfast
