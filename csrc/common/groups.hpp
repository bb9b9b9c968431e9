// The ragged batch: problems of many sizes that share one call.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

namespace slimfast {

// Indices of `costs`, the most expensive first; equal costs keep their order.
inline std::vector<std::int64_t> largest_first(const std::vector<double>& costs) {
    std::vector<std::int64_t> order(costs.size());
    std::iota(order.begin(), order.end(), std::int64_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::int64_t a, std::int64_t b) { return costs[a] > costs[b]; });
    return order;
}

}  // namespace slimfast
