// What device/launch.cuh has, of the emulated machine: the grid runs to its end on the calling thread.
#pragma once

#include <stdexcept>
#include <string>

#include "../stream.hpp"
#include "language.cuh"

namespace slimfast::cuda {

inline unsigned char* shared_memory() { return emulation::shared_memory(); }

inline unsigned cluster_rank() { return emulation::cluster_rank(); }

template <class T>
const T* peer_shared(const T* mine, unsigned rank) {
    const auto offset = reinterpret_cast<const unsigned char*>(mine) - emulation::shared_memory();
    return reinterpret_cast<const T*>(emulation::peer_shared_memory(rank) + offset);
}

inline void cluster_barrier(EMULATION_SITE) { emulation::sync_cluster({file, line}); }

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), Stream, Shape shape, Arguments... arguments) {
    if (shape.blocks == 0) return;
    if (shape.shared_bytes > emulation::settings().shared_limit ||
        (shape.cluster > 1 && !emulation::settings().clusters)) {
        throw std::runtime_error(std::string(name) + ": the launch is beyond the emulated device");
    }
    emulation::run_grid(name, static_cast<unsigned>(shape.blocks), shape.threads, shape.shared_bytes,
                        shape.cluster, [=] { kernel(arguments...); });
}

}  // namespace slimfast::cuda
