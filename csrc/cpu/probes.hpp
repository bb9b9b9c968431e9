// Whether the running machine has what a row of isas.def is compiled for: one function a row.
//
// Those of the rows of 64 bytes are in native/wide_probes.cpp, and for slimfast._cpu_emulated in
// emulation/wide_probes.cpp.
#pragma once

namespace slimfast {

#define ISA(name, source, base, bytes, registers, probe, flags) bool probe();
#include "isas.def"

}  // namespace slimfast
