#include "covariance.hpp"

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "../common/check.hpp"
#include "../common/groups.hpp"
#include "parallel.hpp"
#include "scratch.hpp"

namespace slimfast {
namespace {

using i64 = std::int64_t;

// A block's two packed chunks stay in L2 together.
constexpr i64 block_bytes = 384 * sizeof(float);
// Products per work item: about a millisecond; a layer with less than `items_per_layer` blocks is cut along
// its samples down to this.
constexpr double item_products = 1 << 24;
constexpr i64 items_per_layer = 16;
// Rows of x whose means are one work item.
constexpr i64 mean_rows = 64;

i64 element_size(Dtype dtype) { return dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2; }

i64 ceil_div(i64 a, i64 b) { return (a + b - 1) / b; }

// How one layer is cut: square blocks of the lower triangle, each summed in `splits` parts of its samples.
struct Cut {
    i64 m, d, samples, block, blocks, splits, split_samples, panel;
    // Parts of a split block meet here: splits x (block, block) for each of the pairs, and how many are still
    // out.
    Scratch partial;
    std::unique_ptr<std::atomic<i64>[]> missing;
    std::vector<double> squares;

    i64 pairs() const { return blocks * (blocks + 1) / 2; }
};

struct Item {
    i64 layer, pair, row, col, split;
};

// Rows first_row.. of a member whose means are one work item.
struct MeanItem {
    i64 layer, member, first_row;
};

Cut cut_layer(const CovarianceLayer& layer, const CovarianceKernels& kernels) {
    Cut cut{};
    const bool wide = layer.result == Dtype::f64;
    cut.panel = wide ? kernels.panel_f64 : kernels.panel_f32;
    for (const MatrixView& x : layer.members) cut.d += x.cols;
    const i64 n = layer.members[0].rows;
    cut.m = layer.by_rows ? n : cut.d;
    cut.samples = layer.by_rows ? cut.d : n;
    const i64 largest = std::max<i64>(block_bytes / element_size(layer.result) / cut.panel, 1) * cut.panel;
    cut.blocks = ceil_div(cut.m, largest);
    cut.block = ceil_div(ceil_div(cut.m, cut.blocks), cut.panel) * cut.panel;
    cut.blocks = ceil_div(cut.m, cut.block);
    const double products = static_cast<double>(cut.block) * cut.block * cut.samples;
    const i64 wanted = std::min<i64>(static_cast<i64>(products / item_products) + 1,
                                     std::max<i64>(items_per_layer / cut.pairs(), 1));
    cut.split_samples = ceil_div(ceil_div(cut.samples, wanted), kernels.samples) * kernels.samples;
    cut.splits = ceil_div(cut.samples, cut.split_samples);
    if (cut.splits > 1) {
        const i64 bytes = cut.block * cut.block * element_size(layer.result);
        cut.partial = allocate_scratch(cut.pairs() * cut.splits * bytes);
        cut.missing.reset(new std::atomic<i64>[cut.pairs()]);
        for (i64 p = 0; p < cut.pairs(); ++p) cut.missing[p] = cut.splits;
    }
    cut.squares.assign(cut.blocks * cut.splits, 0.0);
    return cut;
}

// Writes a block's sums, scaled, to both triangles of `out` (m, m); a diagonal block is valid in its lower
// triangle.
template <class T>
void write_block(const T* sums, i64 stride, T scale, T* out, i64 m, i64 row, i64 rows, i64 col, i64 cols) {
    constexpr i64 tile = 32;
    for (i64 r0 = 0; r0 < rows; r0 += tile) {
        for (i64 c0 = 0; c0 < cols; c0 += tile) {
            for (i64 r = r0; r < std::min(r0 + tile, rows); ++r) {
                const i64 last = row == col ? std::min(c0 + tile, r + 1) : std::min(c0 + tile, cols);
                for (i64 c = c0; c < last; ++c) {
                    const T value = sums[r * stride + c] * scale;
                    out[(row + r) * m + col + c] = value;
                    out[(col + c) * m + row + r] = value;
                }
            }
        }
    }
}

template <class T>
void finish_block(const CovarianceLayer& layer, const Cut& cut, T* sums, i64 parts, i64 rows, i64 cols,
                  i64 row, i64 col) {
    const i64 stride = ceil_div(cols, cut.panel) * cut.panel;
    const i64 size = rows * stride;
    for (i64 part = 1; part < parts; ++part) {
        const T* other = sums + part * cut.block * cut.block;
        for (i64 i = 0; i < size; ++i) sums[i] += other[i];
    }
    const T scale = T{1} / static_cast<T>(std::max<i64>(cut.d - 1, 1));
    write_block(sums, stride, scale, static_cast<T*>(layer.out), cut.m, row, rows, col, cols);
}

void check(const CovarianceLayer& layer, i64 at) {
    require(!layer.members.empty() && (layer.by_rows || layer.members.size() == 1),
            "covariance: expected one member, or several by rows, got ", layer.members.size(), " (layer ", at,
            ")");
    for (const MatrixView& x : layer.members) {
        require(x.rows == layer.members[0].rows && x.rows > 0 && x.cols > 0,
                "covariance: expected members of n >= 1 rows and d >= 1 columns, got ", x.rows, " x ", x.cols,
                " (layer ", at, ")");
    }
    require(layer.result == Dtype::f32 || layer.result == Dtype::f64,
            "covariance: expected an f32 or f64 result (layer ", at, ")");
}

}  // namespace

void covariance(const std::vector<CovarianceLayer>& layers, double* traces, int threads, Isa isa) {
    const CovarianceKernels& kernel = kernels(isa).covariance;
    std::vector<Cut> cuts;
    std::vector<Item> items;
    std::vector<MeanItem> mean_items;
    std::vector<double> costs, mean_costs;
    std::vector<std::vector<double>> mean(layers.size()), rest(layers.size());
    i64 packed_bytes = 0, sums_bytes = 0;
    for (i64 i = 0; i < static_cast<i64>(layers.size()); ++i) {
        const CovarianceLayer& layer = layers[i];
        check(layer, i);
        cuts.push_back(cut_layer(layer, kernel));
        const Cut& cut = cuts.back();
        const i64 n = layer.members[0].rows, members = static_cast<i64>(layer.members.size());
        mean[i].resize(n * members);
        rest[i].resize(n * members);
        for (i64 member = 0; member < members; ++member) {
            for (i64 row = 0; row < n; row += mean_rows) {
                mean_items.push_back({i, member, row});
                mean_costs.push_back(static_cast<double>(std::min(mean_rows, n - row)) *
                                     layer.members[member].cols);
            }
        }
        i64 pair = 0;
        for (i64 row = 0; row < cut.blocks; ++row) {
            for (i64 col = 0; col <= row; ++col, ++pair) {
                for (i64 split = 0; split < cut.splits; ++split) {
                    items.push_back({i, pair, row, col, split});
                    costs.push_back(static_cast<double>(cut.block) * cut.block * cut.split_samples *
                                    (row == col ? 0.5 : 1.0));
                }
            }
        }
        const i64 size = element_size(layer.result);
        packed_bytes = std::max(packed_bytes, cut.block * kernel.samples * size);
        if (cut.splits == 1) sums_bytes = std::max(sums_bytes, cut.block * cut.block * size);
    }

    const std::vector<i64> mean_order = largest_first(mean_costs);
    parallel_for(mean_items.size(), threads, [&](i64 at, int) {
        const MeanItem& item = mean_items[mean_order[at]];
        const MatrixView& x = layers[item.layer].members[item.member];
        const i64 place = item.member * x.rows;
        kernel.row_means(x, item.first_row, std::min(item.first_row + mean_rows, x.rows),
                         mean[item.layer].data() + place, rest[item.layer].data() + place);
    });

    const std::vector<Scratch> scratch = scratch_per_thread(threads, 2 * packed_bytes + sums_bytes);
    const std::vector<i64> order = largest_first(costs);
    parallel_for(items.size(), threads, [&](i64 at, int rank) {
        const Item& item = items[order[at]];
        const CovarianceLayer& layer = layers[item.layer];
        Cut& cut = cuts[item.layer];
        const i64 size = element_size(layer.result);
        const i64 slot = cut.block * cut.block * size;
        CovarianceBlock block{};
        block.by_rows = layer.by_rows;
        block.first_row = item.row * cut.block;
        block.rows = std::min(cut.block, cut.m - block.first_row);
        block.first_col = item.col * cut.block;
        block.cols = std::min(cut.block, cut.m - block.first_col);
        block.packed_rows = scratch[rank].get();
        block.packed_cols = scratch[rank].get() + packed_bytes;
        char* parts = cut.splits == 1 ? scratch[rank].get() + 2 * packed_bytes
                                      : cut.partial.get() + item.pair * cut.splits * slot;
        block.sums = parts + (cut.splits == 1 ? 0 : item.split * slot);
        // The part's samples, member by member.
        const i64 first = item.split * cut.split_samples;
        const i64 last = std::min(first + cut.split_samples, cut.samples);
        double squares = 0;
        i64 begin = 0;
        for (std::size_t member = 0; member < layer.members.size() && begin < last; ++member) {
            block.x = layer.members[member];
            const i64 end = begin + (layer.by_rows ? block.x.cols : block.x.rows);
            if (end > first) {
                block.mean = mean[item.layer].data() + member * block.x.rows;
                block.rest = rest[item.layer].data() + member * block.x.rows;
                block.first_sample = std::max(first, begin) - begin;
                block.last_sample = std::min(last, end) - begin;
                squares += (layer.result == Dtype::f64 ? kernel.block_f64 : kernel.block_f32)(block);
                block.add = true;
            }
            begin = end;
        }
        if (item.row == item.col) cut.squares[item.row * cut.splits + item.split] = squares;
        // The last part to arrive adds them all up, in their own order.
        if (cut.splits > 1 && cut.missing[item.pair].fetch_sub(1, std::memory_order_acq_rel) != 1) return;
        if (layer.result == Dtype::f64) {
            finish_block(layer, cut, reinterpret_cast<double*>(parts), cut.splits, block.rows, block.cols,
                         block.first_row, block.first_col);
        } else {
            finish_block(layer, cut, reinterpret_cast<float*>(parts), cut.splits, block.rows, block.cols,
                         block.first_row, block.first_col);
        }
    });

    for (std::size_t i = 0; i < layers.size(); ++i) {
        double total = 0;
        for (double part : cuts[i].squares) total += part;
        traces[i] = total / static_cast<double>(std::max<i64>(cuts[i].d - 1, 1));
    }
}

}  // namespace slimfast
