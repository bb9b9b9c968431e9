// CUDA on the CPU, for tests: enough of the language to build the kernels of this folder as C++ and run them.
//
// A block's threads run as fibers, one at a time, each until it reaches a barrier or a warp collective. What
// stands between two barriers must therefore not depend on the order of the threads: the order can be
// forward, reverse or shuffled, shared memory starts as NaN, and any single barrier can be left out
// (`skip_barrier`), so that a missing one changes the result. A barrier that not all threads reach, or that
// they reach at different lines, is an error.
//
// Only one-dimensional grids and blocks of whole warps, dynamic shared memory, and collectives of a whole
// warp.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __align__(n) alignas(n)

struct Index {
    unsigned x = 0;
};
inline Index threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

enum class Order { kForward, kReverse, kShuffled };

// How the next grids run. `skip` is the "file:line" of a barrier to leave out, or empty.
struct Settings {
    Order order = Order::kForward;
    std::uint64_t seed = 1;
    std::string skip;
    std::size_t shared_limit = 227 << 10;
    bool clusters = true;
};
Settings& settings();

// The barriers reached since the last call, as "file:line", in the order of their first use.
std::vector<std::string> take_barrier_sites();

struct Site {
    const char* file;
    int line;
};

// Runs a grid to its end on the calling thread; throws std::runtime_error naming `name` where threads
// diverge.
void run_grid(const char* name, unsigned blocks, unsigned threads, std::size_t shared_bytes, unsigned cluster,
              const std::function<void()>& body);

void sync_block(Site site);
void sync_cluster(Site site);
void sync_warp(Site site);
// Waits for the warp, and returns what each of its 32 lanes brought.
const std::uint64_t* exchange(std::uint64_t mine, Site site);
void yield_thread();
unsigned char* shared_memory();
unsigned char* peer_shared_memory(unsigned rank);
unsigned cluster_rank();

template <class T>
std::uint64_t to_bits(T value) {
    static_assert(sizeof(T) <= 8, "a warp exchanges at most 8 bytes per lane");
    std::uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    return bits;
}

template <class T>
T from_bits(std::uint64_t bits) {
    T value;
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}

}  // namespace emulation

#define EMULATION_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(EMULATION_SITE) { emulation::sync_block({file, line}); }
inline void __syncwarp(unsigned = ~0u, EMULATION_SITE) { emulation::sync_warp({file, line}); }
inline void __nanosleep(unsigned) { emulation::yield_thread(); }
inline void __threadfence() {}

template <class T>
T __shfl_sync(unsigned, T value, int lane, int = 32, EMULATION_SITE) {
    return emulation::from_bits<T>(emulation::exchange(emulation::to_bits(value), {file, line})[lane & 31]);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask, int = 32, EMULATION_SITE) {
    const int lane = threadIdx.x & 31;
    return emulation::from_bits<T>(emulation::exchange(emulation::to_bits(value), {file, line})[lane ^ mask]);
}
template <class T>
T __shfl_down_sync(unsigned, T value, unsigned delta, int = 32, EMULATION_SITE) {
    const unsigned lane = threadIdx.x & 31;
    const std::uint64_t* all = emulation::exchange(emulation::to_bits(value), {file, line});
    return emulation::from_bits<T>(all[lane + delta < 32 ? lane + delta : lane]);
}
inline unsigned __ballot_sync(unsigned, bool vote, EMULATION_SITE) {
    const std::uint64_t* all = emulation::exchange(vote, {file, line});
    unsigned votes = 0;
    for (int lane = 0; lane < 32; ++lane) votes |= static_cast<unsigned>(all[lane] != 0) << lane;
    return votes;
}

template <class T>
T __ldg(const T* address) {
    return *address;
}
template <class T>
T __ldcg(const T* address) {
    return *address;
}
template <class T>
T atomicAdd(T* address, T value) {
    const T old = *address;
    *address = old + value;
    return old;
}

inline unsigned __umulhi(unsigned a, unsigned b) {
    return static_cast<unsigned>((static_cast<std::uint64_t>(a) * b) >> 32);
}
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __double2hiint(double value) { return static_cast<int>(emulation::to_bits(value) >> 32); }
using std::max;
using std::min;
using std::sqrt;

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};

struct __nv_bfloat16 {
    std::uint16_t bits;
};
struct __half {
    std::uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 value) {
    return emulation::from_bits<float>(static_cast<std::uint64_t>(value.bits) << 16);
}
inline float __half2float(__half value) {
    const int exponent = (value.bits >> 10) & 31;
    const int fraction = value.bits & 1023;
    float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                    : std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
    if (exponent == 31) magnitude = fraction == 0 ? INFINITY : NAN;
    return value.bits & 0x8000 ? -magnitude : magnitude;
}
