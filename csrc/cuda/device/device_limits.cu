// What a GPU allows a launch.
#include "launch.cuh"

namespace slimfast::cuda {

DeviceLimits device_limits(int device) {
    const Shape none{0, 0};
    int shared_bytes = 0;
    int major = 0;
    check(cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
          "device_limits", none);
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "device_limits", none);
    return {static_cast<std::size_t>(shared_bytes), major >= 9};
}

}  // namespace slimfast::cuda
