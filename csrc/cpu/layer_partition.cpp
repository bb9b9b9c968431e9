// Where a layer's triangle and its samples are cut.
#include "layer_partition.hpp"

#include <algorithm>
#include <cmath>

namespace slimfast {
namespace {

// The packed chunk of a block's variables stays in L2.
constexpr i64 kBlockBytes = 768 * sizeof(float);
// A layer of few variables is cut along its samples into at most kMostSplits parts that are so long that
// adding them up costs nothing.
constexpr i64 kSplitSamples = 4096;
constexpr i64 kMostSplits = 16;

// Stripes of whole rows, of about the same area.
void add_stripes(LayerPartition& partition, i64 stripes) {
    i64 first = 0;
    for (i64 stripe = 1; stripe <= stripes; ++stripe) {
        const double share = std::sqrt(static_cast<double>(stripe) / static_cast<double>(stripes));
        const i64 panels = static_cast<i64>(std::lround(share * partition.panels));
        const i64 last = std::min(panels * partition.panel, partition.m);
        if (last > first) partition.pieces.push_back({first, last - first, 0, last});
        first = last;
    }
}

// Square blocks, `blocks` of them along a side.
void add_blocks(LayerPartition& partition, i64 blocks) {
    const i64 m = partition.m, block = ceil_div(partition.panels, blocks) * partition.panel;
    for (i64 row = 0; row < m; row += block) {
        for (i64 col = 0; col <= row; col += block) {
            partition.pieces.push_back({row, std::min(block, m - row), col, std::min(block, m - col)});
        }
    }
}

}  // namespace

LayerPartition partition_samples(const CovarianceLayer& layer, const CovarianceKernels& kernels) {
    LayerPartition partition{};
    partition.panel = layer.result == Dtype::kFloat64 ? kernels.panel_f64 : kernels.panel_f32;
    for (const MatrixView& x : layer.members) partition.d += x.cols;
    const i64 n = layer.members[0].rows;
    partition.m = layer.by_rows ? n : partition.d;
    partition.samples = layer.by_rows ? partition.d : n;
    partition.panels = ceil_div(partition.m, partition.panel);
    const i64 blocks = ceil_div(partition.m, kBlockBytes / element_bytes(layer.result));
    const i64 most = std::max<i64>(kMostSplits / triangle_size(blocks), 1);
    const i64 wanted = std::min(ceil_div(partition.samples, kSplitSamples), most);
    partition.split_samples = round_up(ceil_div(partition.samples, wanted), kernels.samples);
    partition.splits = ceil_div(partition.samples, partition.split_samples);
    partition.squares.assign(partition.splits * partition.panels, SplitSum{});
    return partition;
}

void partition_triangle(LayerPartition& partition, i64 element_bytes, i64 least) {
    i64 blocks = ceil_div(partition.m, kBlockBytes / element_bytes);
    if (blocks == 1) {
        // All packed variables fit.
        add_stripes(partition, least);
    } else {
        while (triangle_size(blocks) < 2 * least && blocks < partition.panels) ++blocks;
        add_blocks(partition, blocks);
    }
    for (const TrianglePiece& piece : partition.pieces) {
        partition.slot =
            std::max(partition.slot, partition.in_panels(piece.rows) * partition.in_panels(piece.cols));
    }
    if (partition.splits == 1) return;
    const i64 pieces = static_cast<i64>(partition.pieces.size());
    partition.partial = allocate_scratch(pieces * partition.splits * partition.slot * element_bytes);
    partition.missing.reset(new std::atomic<i64>[pieces]);
    for (i64 p = 0; p < pieces; ++p) partition.missing[p] = partition.splits;
}

}  // namespace slimfast
