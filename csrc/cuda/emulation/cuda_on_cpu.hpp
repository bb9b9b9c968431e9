// CUDA on the CPU, for tests: how a grid of the kernels, built as C++, runs.
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
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

// Which thread of which block runs: CUDA's own names.
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
