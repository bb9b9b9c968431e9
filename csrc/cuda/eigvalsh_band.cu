// What follows a panel in the reduction to a band: the trailing matrix A becomes A - V W^T - W V^T, where
// W = A V t - V (t^T V^T A V t) / 2 (Bischof, Lang, Sun, "A framework for symmetric band reduction", ACM TOMS
// 26, 2000).
#include <vector>

#include "band.cuh"

namespace slimfast::cuda {
namespace {

// A block of the two kernels below takes kProductRows rows.
constexpr unsigned kRowThreads = 256;
template <class T>
struct ProductShared {
    T v[kProductRows][kBand + 1], y[kProductRows][kBand + 1];
};
// The second of them needs the rows that belong to the next panel's columns too, which come last.
constexpr int kCompanionRows = kProductRows + kBand;
template <class T>
struct CompanionShared {
    T v[kCompanionRows][kBand + 1], y[kCompanionRows][kBand + 1], w[kCompanionRows][kBand + 1];
    T factor[kBand][kBand + 1], gram[kBand][kBand + 1], half[kBand][kBand + 1];
};

// Calls action(row, column) for this thread's share of `rows` rows of kBand columns.
template <class Action>
__device__ void each_entry(int rows, Action action) {
    for (int i = static_cast<int>(threadIdx.x); i < rows * kBand; i += static_cast<int>(kRowThreads))
        action(i / kBand, i % kBand);
}

// Y = A V of kProductRows rows from its parts, and these rows' part of V^T Y.
template <class T>
__global__ void __launch_bounds__(kRowThreads)
    sum_products(const i64* __restrict__ layers, i64 panel, int groups) {
    const BandMemory<T> memory(layers + i64{blockIdx.x / groups} * kEigFields);
    const i64 group = blockIdx.x % groups;
    const i64 trailing = (panel + 1) * kBand;
    const i64 first = trailing + group * kProductRows;
    if (first >= memory.n) return;
    ProductShared<T>& shared = *reinterpret_cast<ProductShared<T>*>(shared_memory());
    const i64 parts = ceil_div(memory.n - trailing, kSuperTile);
    each_entry(kProductRows, [&](int row, int column) {
        shared.v[row][column] = shared.y[row][column] = T{0};
        if (first + row >= memory.n) return;
        T* const y = memory.products + (first + row) * kBand + column;
        T sum = *y;
        for (i64 part = 1; part < parts; ++part) sum += y[part * memory.n * kBand];
        *y = shared.y[row][column] = sum;
        shared.v[row][column] = memory.panel_row(panel, first + row)[column];
    });
    __syncthreads();
    each_entry(kBand, [&](int row, int column) {
        T sum = 0;
#pragma unroll 8
        for (int k = 0; k < kProductRows; ++k) sum += shared.v[k][row] * shared.y[k][column];
        memory.grams[(group * kBand + row) * kBand + column] = sum;
    });
}

// W = Y t - V (t^T V^T Y t) / 2 of kProductRows rows, and with it these rows of the next panel.
template <class T>
__global__ void __launch_bounds__(kRowThreads)
    finish_rows(const i64* __restrict__ layers, i64 panel, int groups) {
    const BandMemory<T> memory(layers + i64{blockIdx.x / groups} * kEigFields);
    const i64 trailing = (panel + 1) * kBand;
    const i64 first = trailing + blockIdx.x % groups * kProductRows;
    if (first >= memory.n) return;
    CompanionShared<T>& shared = *reinterpret_cast<CompanionShared<T>*>(shared_memory());
    const i64 parts = ceil_div(memory.n - trailing, kProductRows);
    each_entry(kBand, [&](int row, int column) {
        const T* gram = memory.grams + row * kBand + column;
        T sum = 0;
        for (i64 part = 0; part < parts; ++part) sum += gram[part * kBand * kBand];
        shared.gram[row][column] = sum;
        shared.factor[row][column] = memory.factor[row * kBand + column];
    });
    each_entry(kCompanionRows, [&](int row, int column) {
        const i64 source = row < kProductRows ? first + row : trailing + row - kProductRows;
        const bool inside = source < memory.n;
        shared.y[row][column] = inside ? memory.products[source * kBand + column] : T{0};
        shared.v[row][column] = inside ? memory.panel_row(panel, source)[column] : T{0};
    });
    __syncthreads();
    each_entry(kBand, [&](int row, int column) {
        T sum = 0;
#pragma unroll 8
        for (int k = 0; k < kBand; ++k) sum += shared.gram[row][k] * shared.factor[k][column];
        shared.half[row][column] = sum / 2;
    });
    __syncthreads();
    // The gram matrix makes room for t^T of that.
    each_entry(kBand, [&](int row, int column) {
        T sum = 0;
#pragma unroll 8
        for (int k = 0; k < kBand; ++k) sum += shared.factor[k][row] * shared.half[k][column];
        shared.gram[row][column] = sum;
    });
    __syncthreads();
    each_entry(kCompanionRows, [&](int row, int column) {
        T sum = 0;
        T less = 0;
#pragma unroll 8
        for (int k = 0; k < kBand; ++k) {
            sum += shared.y[row][k] * shared.factor[k][column];
            less += shared.v[row][k] * shared.gram[k][column];
        }
        shared.w[row][column] = sum - less;
        if (row < kProductRows && first + row < memory.n)
            memory.w[(first + row) * kBand + column] = sum - less;
    });
    __syncthreads();
    each_entry(kProductRows, [&](int row, int column) {
        if (first + row >= memory.n) return;
        const T* column_v = shared.v[kProductRows + column];
        const T* column_w = shared.w[kProductRows + column];
        T change = 0;
#pragma unroll 8
        for (int k = 0; k < kBand; ++k)
            change += shared.v[row][k] * column_w[k] + shared.w[row][k] * column_v[k];
        memory.panel_row(panel + 1, first + row)[column] -= change;
    });
}

// Launch.

template <class T>
void launch_finish(const BandLaunch& to, i64 panel) {
    const i64 rows = padded_size(to.largest) - (panel + 1) * kBand;
    const i64 groups = ceil_div(rows, kProductRows);
    launch("eigvalsh_sum", sum_products<T>, to.stream,
           Shape{to.count * groups, kRowThreads, sizeof(ProductShared<T>)}, to.layers, panel,
           static_cast<int>(groups));
    launch("eigvalsh_finish", finish_rows<T>, to.stream,
           Shape{to.count * groups, kRowThreads, sizeof(CompanionShared<T>)}, to.layers, panel,
           static_cast<int>(groups));
}

}  // namespace

void finish_panel(const BandLaunch& to, i64 panel) {
    to.is_double ? launch_finish<double>(to, panel) : launch_finish<float>(to, panel);
}

// Entry.

void reduce_to_band(Stream stream, const i64* layers, const std::vector<i64>& sizes, bool is_double,
                    unsigned cluster) {
    // How many of the matrices, the largest first, have more than so many panels.
    const auto with_more_than = [&](i64 panels) {
        i64 count = 0;
        for (const i64 m : sizes) count += padded_size(m) > panels * kBand ? 1 : 0;
        return BandLaunch{stream, layers, count, sizes.front(), is_double};
    };
    pack_panels(with_more_than(0));
    for (i64 panel = 0; panel * kBand < padded_size(sizes.front()); ++panel) {
        factor_panel(with_more_than(panel), panel, cluster);
        multiply_trailing(with_more_than(panel + 1), panel);
        finish_panel(with_more_than(panel + 1), panel);
    }
}

std::size_t band_workspace_bytes(i64 m, bool is_double) {
    return is_double ? BandMemory<double>::bytes(m) : BandMemory<float>::bytes(m);
}

}  // namespace slimfast::cuda
