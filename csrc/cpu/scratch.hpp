// Uninitialised memory for kernels, aligned to a cache line.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <new>
#include <vector>

#include "../common/integers.hpp"

namespace slimfast {

struct FreeAligned {
    void operator()(char* memory) const { ::operator delete(memory, std::align_val_t{64}); }
};
using Scratch = std::unique_ptr<char, FreeAligned>;

inline Scratch allocate_scratch(i64 bytes) {
    return Scratch(static_cast<char*>(::operator new(static_cast<std::size_t>(bytes), std::align_val_t{64})));
}

// One block of `bytes` for every thread of a parallel region. Allocated before it, because nothing throws
// inside.
inline std::vector<Scratch> scratch_per_thread(int threads, i64 bytes) {
    std::vector<Scratch> blocks;
    for (int rank = 0; rank < std::max(threads, 1); ++rank) blocks.push_back(allocate_scratch(bytes));
    return blocks;
}

}  // namespace slimfast
