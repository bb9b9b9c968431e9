// Which instruction set the kernels run with: found once, or forced with SLIMFAST_ISA.
#pragma once

#include <string>
#include <vector>

namespace slimfast {

enum class Isa {
#define ISA(name, source, base, bytes, registers, probe, flags) name,
#include "isas.def"
};

const char* name(Isa isa);

// The instruction sets that are compiled in and that this machine runs, the widest last.
const std::vector<Isa>& available_isas();

// The widest available one, or the one that SLIMFAST_ISA names; throws std::invalid_argument where that one
// is unknown or not available.
Isa default_isa();

// The one called `wanted`, or default_isa() for an empty name; throws like it.
Isa find_isa(const std::string& wanted);

}  // namespace slimfast
