// Streaming moments: the products of each piece are summed part by part, then splits join, and the means
// follow.
//
// A part of the positions is centred on its own mean, multiplied in the products' type and added in float64
// to what its split has so far; splits, and the call with what was there before, join in the same way (Chan,
// Golub and LeVeque).
#include "moments.hpp"

#include <algorithm>

#include "moment_work.hpp"
#include "parallel.hpp"
#include "scratch.hpp"

namespace slimfast {
namespace {

// What a thread works with: by variable of x and of y the means of a part, those of the split's first part,
// how far the split's mean has moved from them, and how far a part is from it; then packed samples and sums.
struct MomentScratch {
    struct Side {
        double *mean, *rest, *first_mean, *first_rest, *moved, *apart;
    };
    Side x, y;
    char *packed_rows, *packed_cols, *sums;
    // Patches of a part.
    char *row_patches, *col_patches;
};

constexpr int kSideArrays = 6;

struct ScratchSizes {
    i64 variables = 0, packed = 0, sums = 0, patches = 0;

    void cover(const MomentWork& work, i64 samples) {
        const i64 size = work.layer.in_double ? 8 : 4;
        variables = std::max({variables, work.layer.x.variables, work.y().variables});
        for (const MomentPiece& piece : work.pieces) {
            packed = std::max(packed, size * samples * work.in_panels(std::max(piece.rows, piece.cols)));
        }
        sums = std::max(sums, size * work.slot);
        if (!work.layer.patches) return;
        const i64 element = work.layer.patches->element_bytes, longest = work.positions.parts[0].samples;
        for (const MomentPiece& piece : work.pieces) {
            patches = std::max(patches, element * longest * std::max(piece.rows, piece.cols));
        }
    }
    i64 side_bytes() const { return round_up(8 * kSideArrays * variables, 64); }
    i64 bytes() const {
        return 2 * side_bytes() + 2 * round_up(packed, 64) + round_up(sums, 64) + 2 * round_up(patches, 64);
    }
    MomentScratch of(char* memory) const {
        const auto side = [this](char* from) {
            double* at = reinterpret_cast<double*>(from);
            const i64 n = variables;
            return MomentScratch::Side{at, at + n, at + 2 * n, at + 3 * n, at + 4 * n, at + 5 * n};
        };
        char* packed_rows = memory + 2 * side_bytes();
        char* packed_cols = packed_rows + round_up(packed, 64);
        char* tiles = packed_cols + round_up(packed, 64);
        char* row_patches = tiles + round_up(sums, 64);
        return {side(memory), side(memory + side_bytes()),        packed_rows, packed_cols, tiles,
                row_patches,  row_patches + round_up(patches, 64)};
    }
};

// Moves the mean of variables first..last - 1 of a split of `before` positions towards that of a part of
// `here` more; `apart` is how far they were from each other.
void move_mean(const MomentScratch::Side& side, i64 first, i64 last, i64 before, i64 here) {
    for (i64 v = first; v < last; ++v) {
        if (before == 0) {
            side.first_mean[v] = side.mean[v];
            side.first_rest[v] = side.rest[v];
            side.moved[v] = side.apart[v] = 0;
        } else {
            side.apart[v] =
                (side.mean[v] - side.first_mean[v]) + (side.rest[v] - side.first_rest[v]) - side.moved[v];
            side.moved[v] += side.apart[v] * static_cast<double>(here) / static_cast<double>(before + here);
        }
    }
}

void keep_means(const MomentScratch::Side& side, i64 first, i64 count, double* mean, double* rest) {
    for (i64 v = first; v < first + count; ++v) {
        mean[v] = side.first_mean[v];
        rest[v] = side.first_rest[v] + side.moved[v];
    }
}

// Forms the patches of a part, which become the block's operands: one run of positions.
void form_part(const Patches& patches, const PositionPart& part, const MomentScratch& scratch,
               MomentBlock& block, PositionRun& run) {
    const i64 last_row = block.first_row + block.rows, last_col = block.first_col + block.cols;
    form_patches(patches, block.first_col, last_col, part.first_run, part.samples, scratch.col_patches);
    block.y.data = block.x.data = scratch.col_patches;
    // Variable v of the operands is row v - first of what was formed.
    run = {-block.first_col * part.samples, -block.first_col * part.samples, part.samples};
    if (!block.lower) {
        form_patches(patches, block.first_row, last_row, part.first_run, part.samples, scratch.row_patches);
        block.x.data = scratch.row_patches;
        run.x = -block.first_row * part.samples;
    }
    block.x.variable_stride = block.y.variable_stride = part.samples;
    block.steps = {1, 1};
    block.runs = &run;
    block.run_count = 1;
}

// The sums of one piece over one split, part by part.
void sum_split(MomentWork& work, const MomentKernels& kernel, i64 at, i64 split,
               const MomentScratch& scratch) {
    const MomentPiece& piece = work.pieces[at];
    const i64 k = work.layer.x.variables;
    const bool in_double = work.layer.in_double;
    const MomentScratch::Side& rows = scratch.x;
    const MomentScratch::Side& cols = work.symmetric ? scratch.x : scratch.y;
    MomentBlock block{work.layer.x,
                      work.y(),
                      work.positions.steps,
                      nullptr,
                      0,
                      0,
                      piece.lower,
                      piece.first_row,
                      piece.rows,
                      piece.first_col,
                      piece.cols,
                      rows.mean,
                      rows.rest,
                      cols.mean,
                      cols.rest,
                      scratch.packed_rows,
                      scratch.packed_cols,
                      scratch.sums};
    double* total = reinterpret_cast<double*>(work.partial.get()) + (at * work.splits + split) * work.slot;
    const i64 last_row = piece.first_row + piece.rows, last_col = piece.first_col + piece.cols;
    const i64 parts = static_cast<i64>(work.positions.parts.size());
    i64 before = 0;
    for (i64 p = split * work.split_parts; p < std::min((split + 1) * work.split_parts, parts); ++p) {
        const PositionPart& part = work.positions.parts[p];
        PositionRun run{};
        block.samples = part.samples;
        if (work.layer.patches) {
            form_part(*work.layer.patches, part, scratch, block, run);
        } else {
            block.runs = work.positions.runs.data() + part.first_run;
            block.run_count = part.run_count;
        }
        kernel.means(block, !piece.lower, piece.first_col, last_col, cols.mean, cols.rest);
        move_mean(cols, piece.first_col, last_col, before, part.samples);
        if (!piece.lower) {
            kernel.means(block, false, piece.first_row, last_row, rows.mean, rows.rest);
            move_mean(rows, piece.first_row, last_row, before, part.samples);
        }
        const double here = static_cast<double>(part.samples), so_far = static_cast<double>(before);
        (in_double ? kernel.multiply_f64 : kernel.multiply_f32)(block);
        (in_double ? kernel.add_f64 : kernel.add_f32)(block, before == 0, so_far * here / (so_far + here),
                                                      rows.apart + piece.first_row,
                                                      cols.apart + piece.first_col, total);
        before += part.samples;
    }
    if (work.symmetric ? piece.lower : piece.first_col == 0) {
        double* mean = work.x_means.mean.data() + split * k;
        keep_means(rows, piece.first_row, piece.rows, mean, work.x_means.rest.data() + split * k);
    }
    if (!work.symmetric && piece.first_row == 0) {
        const i64 n = work.layer.y.variables;
        double* mean = work.y_means.mean.data() + split * n;
        keep_means(cols, piece.first_col, piece.cols, mean, work.y_means.rest.data() + split * n);
    }
}

void sum_splits(std::vector<MomentWork>& works, const Kernels& kernel, int threads) {
    struct Item {
        MomentWork& work;
        i64 piece, split;
    };
    std::vector<Item> items;
    std::vector<double> costs;
    ScratchSizes sizes;
    for (MomentWork& work : works) {
        sizes.cover(work, kernel.covariance.samples);
        for (i64 at = 0; at < static_cast<i64>(work.pieces.size()); ++at) {
            for (i64 split = 0; split < work.splits; ++split) {
                items.push_back({work, at, split});
                costs.push_back(work.area(work.pieces[at]) * static_cast<double>(work.split_parts));
            }
        }
    }
    const std::vector<Scratch> scratch = scratch_per_thread(threads, sizes.bytes());
    const std::vector<i64> order = largest_first(costs);
    parallel_for(items.size(), threads, [&](i64 i, int rank) {
        const Item& item = items[order[i]];
        sum_split(item.work, kernel.moments, item.piece, item.split, sizes.of(scratch[rank].get()));
    });
}

// How splits join: by how much the products of what their means are apart weigh, and how far that is, by
// split and variable; the last of them is what was there before the call. Moves `mean` to that of all.
std::vector<double> join_means(const MomentWork& work, const SplitMeans& means, i64 variables, double* mean) {
    std::vector<double> apart((work.splits + 1) * variables, 0.0), moved(variables, 0.0);
    const i64 all = work.positions.count, earlier = work.layer.sums.count;
    for (i64 split = 1; split < work.splits; ++split) {
        const double before = static_cast<double>(work.positions_before(split));
        const double both = static_cast<double>(work.positions_before(split + 1));
        for (i64 v = 0; v < variables; ++v) {
            const i64 at = split * variables + v;
            apart[at] = (means.mean[at] - means.mean[v]) + (means.rest[at] - means.rest[v]) - moved[v];
            moved[v] += apart[at] * (both - before) / both;
        }
    }
    const double share = static_cast<double>(all) / static_cast<double>(all + earlier);
    double* last = apart.data() + work.splits * variables;
    for (i64 v = 0; v < variables; ++v) {
        last[v] = (means.mean[v] - mean[v]) + (means.rest[v] + moved[v]);
        mean[v] += last[v] * share;
    }
    return apart;
}

// Adds the splits of one piece to the layer's sums, and mirrors what is below the diagonal.
void join_splits(const MomentWork& work, i64 at, const std::vector<double>& weights,
                 const std::vector<double>& x_apart, const std::vector<double>& y_apart) {
    const MomentPiece& piece = work.pieces[at];
    const i64 k = work.layer.x.variables, n = work.y().variables, stride = work.in_panels(piece.cols);
    double* total = reinterpret_cast<double*>(work.partial.get()) + at * work.splits * work.slot;
    double* products = work.layer.sums.products;
    for (i64 r = 0; r < piece.rows; ++r) {
        const i64 row = piece.first_row + r;
        const i64 count = piece.lower ? row + 1 - piece.first_col : piece.cols;
        double* sums = total + r * stride;
        for (i64 split = 1; split < work.splits; ++split) {
            const double* other = sums + split * work.slot;
            const double scale = weights[split] * x_apart[split * k + row];
            const double* apart = y_apart.data() + split * n + piece.first_col;
            for (i64 c = 0; c < count; ++c) sums[c] += other[c] + scale * apart[c];
        }
        const double scale = weights[work.splits] * x_apart[work.splits * k + row];
        const double* apart = y_apart.data() + work.splits * n + piece.first_col;
        double* out = products + row * n + piece.first_col;
        for (i64 c = 0; c < count; ++c) out[c] += sums[c] + scale * apart[c];
    }
    if (!work.symmetric) return;
    // A few rows at a time, so that what is written are runs.
    constexpr i64 together = 8;
    for (i64 r0 = 0; r0 < piece.rows; r0 += together) {
        const i64 last = std::min(r0 + together, piece.rows);
        for (i64 c = 0; c < piece.cols; ++c) {
            const i64 col = piece.first_col + c;
            for (i64 row = std::max(piece.first_row + r0, col); row < piece.first_row + last; ++row) {
                products[col * n + row] = products[row * n + col];
            }
        }
    }
}

void join(MomentWork& work, int threads) {
    MomentSums& sums = work.layer.sums;
    std::vector<double> weights(work.splits + 1, 0.0);
    for (i64 split = 1; split < work.splits; ++split) {
        const double before = static_cast<double>(work.positions_before(split));
        const double both = static_cast<double>(work.positions_before(split + 1));
        weights[split] = before * (both - before) / both;
    }
    const double earlier = static_cast<double>(sums.count), now = static_cast<double>(work.positions.count);
    weights[work.splits] = earlier * now / (earlier + now);
    const std::vector<double> x_apart = join_means(work, work.x_means, work.layer.x.variables, sums.mean_x);
    std::vector<double> own;
    if (!work.symmetric) own = join_means(work, work.y_means, work.layer.y.variables, sums.mean_y);
    const std::vector<double>& y_apart = work.symmetric ? x_apart : own;
    parallel_for(work.pieces.size(), threads,
                 [&](i64 at, int) { join_splits(work, at, weights, x_apart, y_apart); });
    sums.count += work.positions.count;
}

}  // namespace

void moments(std::vector<MomentLayer>& layers, int threads, Isa isa) {
    const Kernels& kernel = kernels(isa);
    std::vector<MomentWork> works = cut_layers(layers, kernel.covariance, threads);
    sum_splits(works, kernel, threads);
    for (MomentWork& work : works) join(work, threads);
}

}  // namespace slimfast
