// The dims of a tensor that a gather cuts, made as few as possible before anything is copied.
#pragma once

#include <vector>

#include "integers.hpp"

namespace slimfast {

// `size` positions of the result, read at index[i] * stride or, without an index, at i * stride (elements).
struct GatherDim {
    i64 size, stride;
    const i64* index;
};

// What is left of a tensor's dims, read `offset` elements behind the tensor's first one.
template <class Dim>
struct SimplifiedDims {
    i64 offset;
    std::vector<Dim> dims;
};

// The fewest dims (GatherDim, or a type made of it) that say the same: single positions become an offset,
// indices that are one run become plain, and plain dims that follow each other in memory become one.
template <class Dim>
SimplifiedDims<Dim> simplified(const std::vector<Dim>& dims) {
    SimplifiedDims<Dim> simple{0, {}};
    for (Dim dim : dims) {
        if (dim.index && dim.size > 0 && dim.index[dim.size - 1] - dim.index[0] == dim.size - 1) {
            simple.offset += dim.index[0] * dim.stride;
            dim.index = nullptr;
        }
        if (dim.size == 1) continue;
        Dim* before = simple.dims.empty() ? nullptr : &simple.dims.back();
        if (before && !before->index && !dim.index && before->stride == dim.size * dim.stride) {
            before->size *= dim.size;
            before->stride = dim.stride;
        } else {
            simple.dims.push_back(dim);
        }
    }
    return simple;
}

}  // namespace slimfast
