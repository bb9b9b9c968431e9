// Where the products and the positions of moments are cut.
#include <cmath>

#include "matrix_checks.hpp"
#include "moment_work.hpp"

namespace slimfast {
namespace {

// A part's samples stay in L2 between its means and its products, unless there are too few to be worth the
// float64 sums that are read and written for them.
constexpr i64 kPartElements = 1 << 16, kLeastPart = 1024, kMostPart = 4096;
// Long layers of few variables are cut into splits whose sums stay small.
constexpr i64 kSplitSamples = 4096, kMostSplits = 16, kSplitBytes = 16 << 20;
// The packed chunk of a piece's variables stays in L2.
constexpr i64 kPieceBytes = 768 * sizeof(float);

void add_square_pieces(MomentWork& work, i64 blocks) {
    const i64 m = work.layer.x.variables;
    const i64 block = ceil_div(ceil_div(m, work.panel), blocks) * work.panel;
    for (i64 row = 0; row < m; row += block) {
        for (i64 col = 0; col <= row; col += block) {
            work.pieces.push_back({row, std::min(block, m - row), col, std::min(block, m - col), row == col});
        }
    }
}

// Stripes of whole rows up to the diagonal, of about the same area.
void add_stripes(MomentWork& work, i64 stripes) {
    const i64 m = work.layer.x.variables, panels = ceil_div(m, work.panel);
    i64 first = 0;
    for (i64 stripe = 1; stripe <= stripes; ++stripe) {
        const double share = std::sqrt(static_cast<double>(stripe) / static_cast<double>(stripes));
        const i64 last = std::min(static_cast<i64>(std::lround(share * panels)) * work.panel, m);
        if (last > first) work.pieces.push_back({first, last - first, 0, last, true});
        first = last;
    }
}

void add_rectangles(MomentWork& work, i64 row_blocks, i64 col_blocks) {
    const i64 m = work.layer.x.variables, n = work.layer.y.variables;
    const i64 rows = ceil_div(ceil_div(m, work.panel), row_blocks) * work.panel;
    const i64 cols = ceil_div(ceil_div(n, work.panel), col_blocks) * work.panel;
    for (i64 row = 0; row < m; row += rows) {
        for (i64 col = 0; col < n; col += cols) {
            work.pieces.push_back({row, std::min(rows, m - row), col, std::min(cols, n - col), false});
        }
    }
}

// The pieces: at least `least`, where there are as many panels.
void cut_products(MomentWork& work, i64 least) {
    const i64 most = kPieceBytes / (work.layer.in_double ? 8 : 4);
    i64 row_blocks = ceil_div(work.layer.x.variables, most);
    const i64 row_panels = ceil_div(work.layer.x.variables, work.panel);
    if (!work.symmetric) {
        const i64 col_blocks = ceil_div(work.layer.y.variables, most);
        while (row_blocks * col_blocks < least && row_blocks < row_panels) ++row_blocks;
        add_rectangles(work, row_blocks, col_blocks);
    } else if (row_blocks == 1) {
        add_stripes(work, least);
    } else {
        while (triangle_size(row_blocks) < 2 * least && row_blocks < row_panels) ++row_blocks;
        add_square_pieces(work, row_blocks);
    }
}

// The splits of the positions; they depend on the layer's shape alone, because they are in the result.
void cut_positions(MomentWork& work) {
    const i64 widest = std::max(work.layer.x.variables, work.y().variables);
    const i64 part = std::clamp(kPartElements / widest, kLeastPart, kMostPart);
    work.positions =
        work.layer.patches ? positions_of_patches(*work.layer.patches, part) : positions_of(work.layer, part);
    const i64 parts = static_cast<i64>(work.positions.parts.size());
    const i64 bytes = 8 * work.layer.x.variables * work.y().variables;
    const i64 most = std::clamp<i64>(kSplitBytes / bytes, 1, kMostSplits);
    const i64 wanted = std::clamp<i64>(ceil_div(work.positions.count, kSplitSamples), 1, most);
    work.split_parts = std::max<i64>(ceil_div(parts, wanted), 1);
    work.splits = ceil_div(parts, work.split_parts);
}

void check(const MomentLayer& layer, i64 at) {
    require(layer.x.variables > 0 && (!layer.sums.mean_y || layer.y.variables > 0),
            "moments: expected one or more variables (layer ", at, ")");
}

}  // namespace

std::vector<MomentWork> cut_layers(std::vector<MomentLayer>& layers, const CovarianceKernels& panels,
                                   int threads) {
    std::vector<MomentWork> works;
    works.reserve(layers.size());
    double all = 0;
    for (MomentLayer& layer : layers) {
        check(layer, static_cast<i64>(works.size()));
        MomentWork work{layer, layer.sums.mean_y == nullptr, 0, {}, 0, 0, {}, 0, {}, {}, {}};
        work.panel = layer.in_double ? panels.panel_f64 : panels.panel_f32;
        cut_positions(work);
        if (work.splits == 0) continue;
        all += work.products();
        works.push_back(std::move(work));
    }
    for (MomentWork& work : works) {
        // A layer that is much of the work keeps all threads busy.
        const bool large = 4 * threads * work.products() > all;
        cut_products(work, large ? std::max<i64>(threads / work.splits, 1) : 1);
        for (const MomentPiece& piece : work.pieces) {
            work.slot = std::max(work.slot, work.in_panels(piece.rows) * work.in_panels(piece.cols));
        }
        const i64 pieces = static_cast<i64>(work.pieces.size());
        work.partial = allocate_scratch(8 * pieces * work.splits * work.slot);
        work.x_means.resize(work.splits * work.layer.x.variables);
        work.y_means.resize(work.symmetric ? 0 : work.splits * work.layer.y.variables);
    }
    return works;
}

}  // namespace slimfast
