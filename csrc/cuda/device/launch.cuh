// The one way to start a kernel: on a stream, with every error checked and named. Also what a kernel asks of
// the machine: the memory of its block and of its cluster.
#pragma once

#include <stdexcept>
#include <string>

#include "../stream.hpp"
#include "language.cuh"

namespace slimfast::cuda {

__device__ inline unsigned char* shared_memory() {
    extern __shared__ __align__(16) unsigned char block_memory[];
    return block_memory;
}

__device__ inline unsigned cluster_rank() {
    unsigned rank = 0;
#if __CUDA_ARCH__ >= 900
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
    return rank;
}

// The address in the block of `rank` of what `mine` is in this one.
template <class T>
__device__ const T* peer_shared(const T* mine, unsigned rank) {
#if __CUDA_ARCH__ >= 900
    unsigned long long peer;
    asm("mapa.u64 %0, %1, %2;" : "=l"(peer) : "l"(mine), "r"(rank));
    return reinterpret_cast<const T*>(peer);
#else
    return mine;
#endif
}

// All threads of the cluster; what they wrote before it, their peers see after it.
__device__ inline void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::
                     : "memory");
#else
    __syncthreads();
#endif
}

inline void check(cudaError_t status, const char* name, Shape shape) {
    if (status == cudaSuccess) return;
    throw std::runtime_error(std::string(name) + ": CUDA error " + cudaGetErrorString(status) + " (" +
                             std::to_string(shape.blocks) + " blocks of " + std::to_string(shape.threads) +
                             " threads, " + std::to_string(shape.shared_bytes) +
                             " bytes of shared memory, clusters of " + std::to_string(shape.cluster) + ")");
}

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), Stream stream, Shape shape,
            Arguments... arguments) {
    if (shape.blocks == 0) return;
    check(cudaSetDevice(stream.device), name, shape);
    // Above 48 KiB a block has to ask.
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shape.shared_bytes)),
          name, shape);
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = shape.cluster;
    attribute.val.clusterDim.y = 1;
    attribute.val.clusterDim.z = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(shape.blocks));
    config.blockDim = dim3(shape.threads);
    config.dynamicSmemBytes = shape.shared_bytes;
    config.stream = reinterpret_cast<cudaStream_t>(stream.handle);
    config.attrs = &attribute;
    config.numAttrs = shape.cluster > 1 ? 1 : 0;
    check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), name, shape);
}

}  // namespace slimfast::cuda
