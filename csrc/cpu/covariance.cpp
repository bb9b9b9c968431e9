#include "covariance.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <numeric>
#include <vector>

#include "matrix_checks.hpp"
#include "parallel.hpp"
#include "scratch.hpp"

namespace slimfast {
namespace {

// The packed chunk of a block's variables stays in L2.
constexpr i64 block_bytes = 768 * sizeof(float);
// A layer of few variables is cut along its samples into at most `most_splits` parts that are so long that
// adding them up costs nothing. What it is cut into depends on its shape alone, because it is in the result.
constexpr i64 split_samples = 4096;
constexpr i64 most_splits = 16;
// Rows of x whose means are one work item.
constexpr i64 mean_rows = 64;

// Rows and columns of one work item; see CovarianceBlock.
struct Piece {
    i64 first_row, rows, first_col, cols;
};

// How one layer is cut: its lower triangle into pieces, each summed in `splits` parts of the samples.
struct Cut {
    i64 m, d, samples, panel, panels, splits, split_samples;
    std::vector<Piece> pieces;
    // Elements of the largest piece's sums; where there are several parts, they meet in `partial`: splits x
    // slot for each of the pieces, and how many are still out.
    i64 slot;
    Scratch partial;
    std::unique_ptr<std::atomic<i64>[]> missing;
    // (splits, panels)
    std::vector<SplitSum> squares;

    i64 in_panels(i64 variables) const { return round_up(variables, panel); }
    double products() const { return 0.5 * static_cast<double>(m) * m * samples; }
};

struct Item {
    i64 layer, piece, split;
};

// Where means are below this share of the squares, and those neither overflow nor sink into what the
// instructions flush to zero, the products of bfloat16 samples can be summed before the means are taken out:
// see docs/kernels-cpu.md.
constexpr double mean_share = 0.1, least_square = 0x1p-80, largest_square = 0x1p100;

// Whether a layer's samples can be multiplied as they are; squares[member * n + row] are about the means.
bool bf16_suffices(const CovarianceLayer& layer, const std::vector<double>& mean,
                   const std::vector<double>& squares) {
    const i64 n = layer.members[0].rows;
    double all_means = 0, all_squares = 0, largest_means = 0, largest = 0;
    for (i64 row = 0; row < n; ++row) {
        double of_means = 0, of_row = 0;
        for (std::size_t member = 0; member < layer.members.size(); ++member) {
            const double value = mean[member * n + row];
            of_means += value * value * static_cast<double>(layer.members[member].cols);
            of_row += squares[member * n + row];
        }
        all_means += of_means;
        all_squares += of_row;
        largest_means = std::max(largest_means, of_means);
        largest = std::max(largest, of_row);
    }
    if (!layer.by_rows) {
        // Each variable has all means beside its samples.
        largest_means = all_means / static_cast<double>(layer.members[0].cols);
        largest = all_squares / static_cast<double>(layer.members[0].cols);
    }
    return std::isfinite(all_means + all_squares) && largest_means <= mean_share * largest &&
           largest >= least_square && largest <= largest_square;
}

// Rows first_row.. of a member whose means are one work item.
struct MeanItem {
    i64 layer, member, first_row;
};

Cut cut_samples(const CovarianceLayer& layer, const CovarianceKernels& kernels) {
    Cut cut{};
    cut.panel = layer.result == Dtype::kFloat64 ? kernels.panel_f64 : kernels.panel_f32;
    for (const MatrixView& x : layer.members) cut.d += x.cols;
    const i64 n = layer.members[0].rows;
    cut.m = layer.by_rows ? n : cut.d;
    cut.samples = layer.by_rows ? cut.d : n;
    cut.panels = ceil_div(cut.m, cut.panel);
    const i64 blocks = ceil_div(cut.m, block_bytes / element_bytes(layer.result));
    const i64 most = std::max<i64>(most_splits / triangle_size(blocks), 1);
    const i64 wanted = std::min(ceil_div(cut.samples, split_samples), most);
    cut.split_samples = round_up(ceil_div(cut.samples, wanted), kernels.samples);
    cut.splits = ceil_div(cut.samples, cut.split_samples);
    cut.squares.assign(cut.splits * cut.panels, SplitSum{});
    return cut;
}

// One block while its packed variables fit, and otherwise square ones; a layer that is much of the work is
// cut into at least `least` pieces. A sum's terms and their order are the same in all of them.
void cut_triangle(Cut& cut, i64 element_bytes, i64 least) {
    i64 blocks = ceil_div(cut.m, block_bytes / element_bytes);
    if (blocks == 1) {
        // Stripes of whole rows, of about the same area.
        i64 first = 0;
        for (i64 stripe = 1; stripe <= least; ++stripe) {
            const double share = std::sqrt(static_cast<double>(stripe) / static_cast<double>(least));
            const i64 last = std::min(static_cast<i64>(std::lround(share * cut.panels)) * cut.panel, cut.m);
            if (last > first) cut.pieces.push_back({first, last - first, 0, last});
            first = last;
        }
    } else {
        while (triangle_size(blocks) < 2 * least && blocks < cut.panels) ++blocks;
        const i64 block = ceil_div(cut.panels, blocks) * cut.panel;
        for (i64 row = 0; row < cut.m; row += block) {
            for (i64 col = 0; col <= row; col += block) {
                cut.pieces.push_back({row, std::min(block, cut.m - row), col, std::min(block, cut.m - col)});
            }
        }
    }
    for (const Piece& piece : cut.pieces) {
        cut.slot = std::max(cut.slot, cut.in_panels(piece.rows) * cut.in_panels(piece.cols));
    }
    if (cut.splits == 1) return;
    const i64 pieces = static_cast<i64>(cut.pieces.size());
    cut.partial = allocate_scratch(pieces * cut.splits * cut.slot * element_bytes);
    cut.missing.reset(new std::atomic<i64>[pieces]);
    for (i64 p = 0; p < pieces; ++p) cut.missing[p] = cut.splits;
}

// Products of a piece, for each of its samples.
double area(const Piece& piece) {
    const bool lower = piece.first_row + piece.rows == piece.first_col + piece.cols;
    return static_cast<double>(piece.rows) * (piece.cols - (lower ? piece.rows / 2 : 0));
}

// Adds the other parts of a piece's sums to the first.
template <class T>
void add_parts(const Cut& cut, const Piece& piece, T* sums) {
    for (i64 part = 1; part < cut.splits; ++part) {
        const T* other = sums + part * cut.slot;
        for (i64 i = 0; i < piece.rows * cut.in_panels(piece.cols); ++i) sums[i] += other[i];
    }
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
    require(is_float32_or_float64(layer.result), "covariance: expected an f32 or f64 result (layer ", at,
            ")");
}

double sum_of(const std::vector<SplitSum>& parts) {
    SplitSum total{};
    for (const SplitSum& part : parts) {
        add_exactly(part.value, total.value, total.lost);
        total.lost += part.lost;
    }
    return total.value + total.lost;
}

}  // namespace

void covariance(const std::vector<CovarianceLayer>& layers, double* traces, int threads, Isa isa) {
    const CovarianceKernels& kernel = kernels(isa).covariance;
    const i64 count = static_cast<i64>(layers.size());
    std::vector<Cut> cuts;
    double all_products = 0;
    for (i64 i = 0; i < count; ++i) {
        check(layers[i], i);
        cuts.push_back(cut_samples(layers[i], kernel));
        all_products += cuts.back().products();
    }
    std::vector<Item> items;
    std::vector<MeanItem> mean_items;
    std::vector<double> costs, mean_costs;
    // Squares of deviations only of layers whose samples may be multiplied as they are.
    std::vector<std::vector<double>> mean(count), rest(count), squares(count);
    i64 packed_bytes = 0, sums_bytes = 0;
    for (i64 i = 0; i < count; ++i) {
        const CovarianceLayer& layer = layers[i];
        Cut& cut = cuts[i];
        const i64 size = element_bytes(layer.result);
        const bool large = 4 * threads * cut.products() > all_products;
        cut_triangle(cut, size, large ? std::max<i64>(threads / cut.splits, 1) : 1);
        const i64 n = layer.members[0].rows, members = static_cast<i64>(layer.members.size());
        mean[i].resize(n * members);
        rest[i].resize(n * members);
        const bool narrow = std::all_of(layer.members.begin(), layer.members.end(),
                                        [](const MatrixView& x) { return x.dtype == Dtype::kBfloat16; });
        if (kernel.bf16 && narrow && layer.result == Dtype::kFloat32) squares[i].resize(n * members);
        for (i64 member = 0; member < members; ++member) {
            for (i64 row = 0; row < n; row += mean_rows) {
                mean_items.push_back({i, member, row});
                mean_costs.push_back(static_cast<double>(std::min(mean_rows, n - row)) *
                                     layer.members[member].cols);
            }
        }
        for (i64 piece = 0; piece < static_cast<i64>(cut.pieces.size()); ++piece) {
            const i64 widest = cut.in_panels(std::max(cut.pieces[piece].rows, cut.pieces[piece].cols));
            packed_bytes = std::max(packed_bytes, widest * kernel.samples * size);
            for (i64 split = 0; split < cut.splits; ++split) {
                items.push_back({i, piece, split});
                costs.push_back(area(cut.pieces[piece]) * cut.split_samples);
            }
        }
        if (cut.splits == 1) sums_bytes = std::max(sums_bytes, cut.slot * size);
    }

    const std::vector<i64> mean_order = largest_first(mean_costs);
    parallel_for(mean_items.size(), threads, [&](i64 at, int) {
        const MeanItem& item = mean_items[mean_order[at]];
        const MatrixView& x = layers[item.layer].members[item.member];
        const i64 place = item.member * x.rows, last = std::min(item.first_row + mean_rows, x.rows);
        double* means = mean[item.layer].data() + place;
        double* rests = rest[item.layer].data() + place;
        kernel.row_means(x, item.first_row, last, means, rests);
        if (squares[item.layer].empty()) return;
        kernel.bf16->row_squares(x, item.first_row, last, means, rests, squares[item.layer].data() + place);
    });
    for (i64 i = 0; i < count; ++i) {
        if (!squares[i].empty() && !bf16_suffices(layers[i], mean[i], squares[i])) squares[i].clear();
    }

    const std::vector<Scratch> scratch = scratch_per_thread(threads, 2 * packed_bytes + sums_bytes);
    const std::vector<i64> order = largest_first(costs);
    parallel_for(items.size(), threads, [&](i64 at, int rank) {
        const Item& item = items[order[at]];
        const CovarianceLayer& layer = layers[item.layer];
        Cut& cut = cuts[item.layer];
        const Piece& piece = cut.pieces[item.piece];
        const i64 slot = cut.slot * element_bytes(layer.result);
        CovarianceBlock block{};
        block.by_rows = layer.by_rows;
        block.first_row = piece.first_row;
        block.rows = piece.rows;
        block.first_col = piece.first_col;
        block.cols = piece.cols;
        block.packed_rows = scratch[rank].get();
        block.packed_cols = scratch[rank].get() + packed_bytes;
        char* parts = cut.splits == 1 ? scratch[rank].get() + 2 * packed_bytes
                                      : cut.partial.get() + item.piece * cut.splits * slot;
        block.sums = parts + (cut.splits == 1 ? 0 : item.split * slot);
        block.squares = cut.squares.data() + item.split * cut.panels + piece.first_row / cut.panel;
        // The part's samples, member by member.
        const i64 first = item.split * cut.split_samples;
        const i64 last = std::min(first + cut.split_samples, cut.samples);
        const auto fill = layer.result == Dtype::kFloat64 ? kernel.block_f64
                          : squares[item.layer].empty()   ? kernel.block_f32
                                                          : kernel.bf16->block;
        i64 begin = 0;
        for (std::size_t member = 0; member < layer.members.size() && begin < last; ++member) {
            block.x = layer.members[member];
            const i64 end = begin + (layer.by_rows ? block.x.cols : block.x.rows);
            if (end > first) {
                block.mean = mean[item.layer].data() + member * block.x.rows;
                block.rest = rest[item.layer].data() + member * block.x.rows;
                block.first_sample = std::max(first, begin) - begin;
                block.last_sample = std::min(last, end) - begin;
                fill(block);
                block.add = true;
            }
            begin = end;
        }
        // The last part to arrive adds them all up, in their own order.
        if (cut.splits > 1 && cut.missing[item.piece].fetch_sub(1, std::memory_order_acq_rel) != 1) return;
        block.sums = parts;
        const double samples = static_cast<double>(std::max<i64>(cut.d - 1, 1));
        if (layer.result == Dtype::kFloat64) {
            add_parts(cut, piece, reinterpret_cast<double*>(parts));
            kernel.write_f64(block, 1.0 / samples, layer.out, cut.m);
        } else {
            add_parts(cut, piece, reinterpret_cast<float*>(parts));
            kernel.write_f32(block, 1.0 / samples, layer.out, cut.m);
        }
    });

    for (i64 i = 0; i < count; ++i) {
        const double samples = static_cast<double>(std::max<i64>(cuts[i].d - 1, 1));
        traces[i] = (squares[i].empty() ? sum_of(cuts[i].squares)
                                        : std::accumulate(squares[i].begin(), squares[i].end(), 0.0)) /
                    samples;
    }
}

}  // namespace slimfast
