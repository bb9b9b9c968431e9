// Contiguous copies of tensors, cut to kept indices.
#pragma once

#include <vector>

#include "../common/gather_dims.hpp"

namespace slimfast {

// out: contiguous, its shape that of `dims`; elements of 1, 2, 4 or 8 bytes are moved as they are.
struct GatherTask {
    const char* data;
    char* out;
    i64 element_bytes;
    std::vector<GatherDim> dims;
};

void gather(std::vector<GatherTask> tasks, int threads);

}  // namespace slimfast
