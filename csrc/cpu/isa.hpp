// Which instruction set the kernels run with: found once, or forced with SLIMFAST_ISA.
#pragma once

#include <string>
#include <vector>

namespace slimfast {

// The last two are AVX-512 with one of the instructions that multiply bfloat16 numbers.
enum class Isa { baseline, avx2, avx512, avx512_bf16, amx };

const char* name(Isa isa);

// The instruction sets that are compiled in and that this machine runs, the widest last.
const std::vector<Isa>& available_isas();

// The widest available one, or the one that SLIMFAST_ISA names; throws std::invalid_argument where that one
// is unknown or not available.
Isa default_isa();

// The one called `wanted`, or default_isa() for an empty name; throws like it.
Isa find_isa(const std::string& wanted);

}  // namespace slimfast
