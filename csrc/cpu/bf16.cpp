// Compiled once for vdpbf16ps and once for tdpbf16ps, see CMakeLists.txt.
#include "bf16-inl.hpp"
