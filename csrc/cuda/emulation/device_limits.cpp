// What the emulated device allows a launch: what a test has set.
#include "../stream.hpp"
#include "cuda_on_cpu.hpp"

namespace slimfast::cuda {

DeviceLimits device_limits(int) {
    return {emulation::settings().shared_limit, emulation::settings().clusters};
}

}  // namespace slimfast::cuda
