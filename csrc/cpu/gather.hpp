// Contiguous copies of tensors, cut to kept indices.
#pragma once

#include <cstdint>
#include <vector>

namespace slimfast {

// One dim of the output: `size` positions, read at index[i] * stride or, without an index, at i * stride
// (elements).
struct GatherDim {
    std::int64_t size;
    std::int64_t stride;
    const std::int64_t* index;
};

// out: contiguous, its shape that of `dims`; elements of 1, 2, 4 or 8 bytes are moved as they are.
struct GatherTask {
    const char* data;
    char* out;
    std::int64_t element_bytes;
    std::vector<GatherDim> dims;
};

void gather(std::vector<GatherTask> tasks, int threads);

}  // namespace slimfast
