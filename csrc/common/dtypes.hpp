// The types of numbers that the kernels read, and the codes that Python passes for them.
#pragma once

#include "integers.hpp"

namespace slimfast {

enum class Dtype : int { kFloat32 = 0, kFloat64 = 1, kBfloat16 = 2, kFloat16 = 3 };

SLIMFAST_COMMON constexpr i64 element_bytes(Dtype dtype) {
    return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2;
}

}  // namespace slimfast
