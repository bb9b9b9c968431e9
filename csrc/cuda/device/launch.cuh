// The one way to start a kernel: on a stream, with every error checked and named. Also what the CUDA build
// and the CPU build (SLIMFAST_CUDA_EMULATION) each say in their own words: shared memory, clusters, copies to
// registers.
#pragma once

#ifdef SLIMFAST_CUDA_EMULATION
#include "emulation/cuda_on_cpu.hpp"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#include <stdexcept>
#include <string>

#include "../common/floats.hpp"
#include "stream.hpp"

namespace slimfast::cuda {

// A one-dimensional grid. `cluster` blocks in a row share their memory; it divides `blocks`.
struct Shape {
    i64 blocks;
    unsigned threads;
    std::size_t shared_bytes = 0;
    unsigned cluster = 1;
};

inline constexpr unsigned kAllLanes = 0xffffffffu;

#ifdef SLIMFAST_CUDA_EMULATION

__device__ inline unsigned char* shared_memory() { return emulation::shared_memory(); }

__device__ inline unsigned cluster_rank() { return emulation::cluster_rank(); }

template <class T>
__device__ const T* peer_shared(const T* mine, unsigned rank) {
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

#else

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

#endif

}  // namespace slimfast::cuda
