// Where the kernels of a call run, a device and one of its streams, and in which shape.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/integers.hpp"

namespace slimfast::cuda {

struct Stream {
    int device;
    std::uintptr_t handle;
};

// A one-dimensional grid. `cluster` blocks in a row share their memory; it divides `blocks`.
struct Shape {
    i64 blocks;
    unsigned threads;
    std::size_t shared_bytes = 0;
    unsigned cluster = 1;
};

// What decides the shape of a launch.
struct DeviceLimits {
    std::size_t shared_bytes;  // per block, with the opt-in
    bool clusters;             // thread-block clusters and distributed shared memory
};

DeviceLimits device_limits(int device);

}  // namespace slimfast::cuda
