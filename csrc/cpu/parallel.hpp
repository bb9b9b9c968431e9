// The only place that starts threads, and the order in which they take the work.
//
// With OpenMP the threads are those of the runtime that torch has already loaded, so nothing is
// oversubscribed; without it they are started for the call. Kernels never nest regions and never throw inside
// one.
#pragma once

#include <algorithm>
#include <atomic>
#include <numeric>
#include <thread>
#include <utility>
#include <vector>

#ifdef SLIMFAST_OPENMP
#include <omp.h>
#endif

#include "../common/integers.hpp"

namespace slimfast {

// Calls body(rank, size) once on each of at most `threads` threads; returns when all have finished. The
// runtime may give fewer: `size` is what it gave.
template <class Body>
void parallel_run(int threads, Body&& body) {
    if (threads <= 1) {
        body(0, 1);
        return;
    }
#ifdef SLIMFAST_OPENMP
#pragma omp parallel num_threads(threads)
    body(omp_get_thread_num(), omp_get_num_threads());
#else
    std::vector<std::thread> others;
    others.reserve(threads - 1);
    for (int rank = 1; rank < threads; ++rank)
        others.emplace_back([&body, rank, threads] { body(rank, threads); });
    body(0, threads);
    for (std::thread& other : others) other.join();
#endif
}

// Where the threads of a region wait for each other. They spin at first: what they wait for takes
// microseconds.
class Barrier {
  public:
    void wait(int threads) {
        const int phase = phase_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
            arrived_.store(0, std::memory_order_relaxed);
            phase_.store(phase + 1, std::memory_order_release);
            return;
        }
        for (int looks = 0; phase_.load(std::memory_order_acquire) == phase; ++looks) {
            if (looks > kSpins) std::this_thread::yield();
        }
    }

  private:
    static constexpr int kSpins = 4096;
    std::atomic<int> arrived_{0};
    std::atomic<int> phase_{0};
};

// Indices of `costs`, the most expensive first; equal costs keep their order.
inline std::vector<i64> largest_first(const std::vector<double>& costs) {
    std::vector<i64> order(costs.size());
    std::iota(order.begin(), order.end(), i64{0});
    std::stable_sort(order.begin(), order.end(), [&](i64 a, i64 b) { return costs[a] > costs[b]; });
    return order;
}

// Calls body(item, rank) for every item in 0..items-1, in that order as threads become free.
template <class Body>
void parallel_for(i64 items, int threads, Body&& body) {
    std::atomic<i64> next{0};
    const int useful = static_cast<int>(items < threads ? items : threads);
    parallel_run(useful, [&](int rank, int) {
        for (i64 item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;) body(item, rank);
    });
}

}  // namespace slimfast
