// Covariances of a group of layers in five stages: they are cut into pieces, the means of their rows are
// formed, those that can be multiplied as bfloat16 are found, the pieces are multiplied, and the traces added
// up.
#include "covariance.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "layer_partition.hpp"
#include "matrix_checks.hpp"
#include "parallel.hpp"

namespace slimfast {
namespace {

// Rows of x whose means are one work item.
constexpr i64 kMeanRows = 64;
// Where means are below this share of the squares, and those neither overflow nor sink into what the
// instructions flush to zero, the products of bfloat16 samples can be summed before the means are taken out:
// see docs/developer/kernels-cpu.md.
constexpr double kMeanShare = 0.1, kLeastSquare = 0x1p-80, kLargestSquare = 0x1p100;

// What the stages find of one layer.
struct LayerWork {
    const CovarianceLayer& layer;
    LayerPartition partition;
    // (members, n): the mean of every row of a member, see CovarianceBlock, and the squares about it, which
    // are there only for layers whose samples may be multiplied as they are.
    std::vector<double> mean, rest, squares;

    i64 rows() const { return layer.members[0].rows; }
    double divisor() const { return static_cast<double>(std::max<i64>(partition.d - 1, 1)); }
};

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

std::vector<LayerWork> partition_layers(const std::vector<CovarianceLayer>& layers,
                                        const CovarianceKernels& kernel, int threads) {
    std::vector<LayerWork> works;
    works.reserve(layers.size());
    double all_products = 0;
    for (const CovarianceLayer& layer : layers) {
        check(layer, static_cast<i64>(works.size()));
        works.push_back({layer, partition_samples(layer, kernel), {}, {}, {}});
        all_products += works.back().partition.products();
    }
    for (LayerWork& work : works) {
        const CovarianceLayer& layer = work.layer;
        LayerPartition& partition = work.partition;
        // A layer that is much of the work keeps all threads busy.
        const bool large = 4 * threads * partition.products() > all_products;
        const i64 least = large ? std::max<i64>(threads / partition.splits, 1) : 1;
        partition_triangle(partition, element_bytes(layer.result), least);
        const i64 means = work.rows() * static_cast<i64>(layer.members.size());
        work.mean.resize(means);
        work.rest.resize(means);
        const bool narrow = std::all_of(layer.members.begin(), layer.members.end(),
                                        [](const MatrixView& x) { return x.dtype == Dtype::kBfloat16; });
        if (kernel.bf16 && narrow && layer.result == Dtype::kFloat32) work.squares.resize(means);
    }
    return works;
}

void form_means(std::vector<LayerWork>& works, const CovarianceKernels& kernel, int threads) {
    struct Item {
        LayerWork& work;
        i64 member, first_row;
    };
    std::vector<Item> items;
    std::vector<double> costs;
    for (LayerWork& work : works) {
        const i64 n = work.rows(), members = static_cast<i64>(work.layer.members.size());
        for (i64 member = 0; member < members; ++member) {
            for (i64 row = 0; row < n; row += kMeanRows) {
                items.push_back({work, member, row});
                costs.push_back(static_cast<double>(std::min(kMeanRows, n - row)) *
                                work.layer.members[member].cols);
            }
        }
    }
    const std::vector<i64> order = largest_first(costs);
    parallel_for(items.size(), threads, [&](i64 at, int) {
        const Item& item = items[order[at]];
        LayerWork& work = item.work;
        const MatrixView& x = work.layer.members[item.member];
        const i64 place = item.member * x.rows, last = std::min(item.first_row + kMeanRows, x.rows);
        double* means = work.mean.data() + place;
        double* rests = work.rest.data() + place;
        kernel.row_means(x, item.first_row, last, means, rests);
        if (work.squares.empty()) return;
        kernel.bf16->row_squares(x, item.first_row, last, means, rests, work.squares.data() + place);
    });
}

bool bf16_suffices(const LayerWork& work) {
    const CovarianceLayer& layer = work.layer;
    const i64 n = work.rows();
    double all_means = 0, all_squares = 0, largest_means = 0, largest = 0;
    for (i64 row = 0; row < n; ++row) {
        double of_means = 0, of_row = 0;
        for (std::size_t member = 0; member < layer.members.size(); ++member) {
            const double value = work.mean[member * n + row];
            of_means += value * value * static_cast<double>(layer.members[member].cols);
            of_row += work.squares[member * n + row];
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
    return std::isfinite(all_means + all_squares) && largest_means <= kMeanShare * largest &&
           largest >= kLeastSquare && largest <= kLargestSquare;
}

// Leaves the squares to the layers that are multiplied as bfloat16.
void choose_bf16(std::vector<LayerWork>& works) {
    for (LayerWork& work : works) {
        if (!work.squares.empty() && !bf16_suffices(work)) work.squares.clear();
    }
}

// Adds the other parts of a piece's sums to the first.
template <class T>
void add_parts(const LayerPartition& partition, const TrianglePiece& piece, T* sums) {
    for (i64 part = 1; part < partition.splits; ++part) {
        const T* other = sums + part * partition.slot;
        for (i64 i = 0; i < piece.rows * partition.in_panels(piece.cols); ++i) sums[i] += other[i];
    }
}

// A thread's scratch: packed rows and columns, and the sums of a piece that is not cut along the samples.
struct BlockScratch {
    char* memory;
    i64 packed_bytes;
};

// The sums of one piece over one part of the samples, member by member.
void sum_part(const LayerWork& work, const CovarianceKernels& kernel, i64 split, CovarianceBlock& block) {
    const CovarianceLayer& layer = work.layer;
    const LayerPartition& partition = work.partition;
    const i64 first = split * partition.split_samples;
    const i64 last = std::min(first + partition.split_samples, partition.samples);
    const auto fill = layer.result == Dtype::kFloat64 ? kernel.block_f64
                      : work.squares.empty()          ? kernel.block_f32
                                                      : kernel.bf16->block;
    i64 begin = 0;
    for (std::size_t member = 0; member < layer.members.size() && begin < last; ++member) {
        block.x = layer.members[member];
        const i64 end = begin + (layer.by_rows ? block.x.cols : block.x.rows);
        if (end > first) {
            block.mean = work.mean.data() + member * block.x.rows;
            block.rest = work.rest.data() + member * block.x.rows;
            block.first_sample = std::max(first, begin) - begin;
            block.last_sample = std::min(last, end) - begin;
            fill(block);
            block.add = true;
        }
        begin = end;
    }
}

// Sums one part of a piece; the last part to arrive adds them all up, in their own order, and writes them.
void multiply_piece(LayerWork& work, const CovarianceKernels& kernel, i64 at, i64 split,
                    const BlockScratch& scratch) {
    LayerPartition& partition = work.partition;
    const TrianglePiece& piece = partition.pieces[at];
    const bool whole = partition.splits == 1;
    const i64 slot = partition.slot * element_bytes(work.layer.result);
    char* parts = whole ? scratch.memory + 2 * scratch.packed_bytes
                        : partition.partial.get() + at * partition.splits * slot;
    CovarianceBlock block{};
    block.by_rows = work.layer.by_rows;
    block.first_row = piece.first_row;
    block.rows = piece.rows;
    block.first_col = piece.first_col;
    block.cols = piece.cols;
    block.packed_rows = scratch.memory;
    block.packed_cols = scratch.memory + scratch.packed_bytes;
    block.sums = parts + (whole ? 0 : split * slot);
    block.squares = partition.squares.data() + split * partition.panels + piece.first_row / partition.panel;
    sum_part(work, kernel, split, block);
    if (!whole && partition.missing[at].fetch_sub(1, std::memory_order_acq_rel) != 1) return;
    block.sums = parts;
    if (work.layer.result == Dtype::kFloat64) {
        add_parts(partition, piece, reinterpret_cast<double*>(parts));
        kernel.write_f64(block, 1.0 / work.divisor(), work.layer.out, partition.m);
    } else {
        add_parts(partition, piece, reinterpret_cast<float*>(parts));
        kernel.write_f32(block, 1.0 / work.divisor(), work.layer.out, partition.m);
    }
}

void multiply_pieces(std::vector<LayerWork>& works, const CovarianceKernels& kernel, int threads) {
    struct Item {
        LayerWork& work;
        i64 piece, split;
    };
    std::vector<Item> items;
    std::vector<double> costs;
    i64 packed_bytes = 0, sums_bytes = 0;
    for (LayerWork& work : works) {
        const LayerPartition& partition = work.partition;
        const i64 size = element_bytes(work.layer.result);
        for (i64 at = 0; at < static_cast<i64>(partition.pieces.size()); ++at) {
            const TrianglePiece& piece = partition.pieces[at];
            const i64 widest = partition.in_panels(std::max(piece.rows, piece.cols));
            packed_bytes = std::max(packed_bytes, widest * kernel.samples * size);
            for (i64 split = 0; split < partition.splits; ++split) {
                items.push_back({work, at, split});
                costs.push_back(piece.area() * partition.split_samples);
            }
        }
        if (partition.splits == 1) sums_bytes = std::max(sums_bytes, partition.slot * size);
    }
    const std::vector<Scratch> scratch = scratch_per_thread(threads, 2 * packed_bytes + sums_bytes);
    const std::vector<i64> order = largest_first(costs);
    parallel_for(items.size(), threads, [&](i64 at, int rank) {
        const Item& item = items[order[at]];
        multiply_piece(item.work, kernel, item.piece, item.split, {scratch[rank].get(), packed_bytes});
    });
}

double sum_of(const std::vector<SplitSum>& parts) {
    SplitSum total{};
    for (const SplitSum& part : parts) {
        add_exactly(part.value, total.value, total.lost);
        total.lost += part.lost;
    }
    return total.value + total.lost;
}

double trace_of(const LayerWork& work) {
    const double squares = work.squares.empty()
                               ? sum_of(work.partition.squares)
                               : std::accumulate(work.squares.begin(), work.squares.end(), 0.0);
    return squares / work.divisor();
}

}  // namespace

void covariance(const std::vector<CovarianceLayer>& layers, double* traces, int threads, Isa isa) {
    const CovarianceKernels& kernel = kernels(isa).covariance;
    std::vector<LayerWork> works = partition_layers(layers, kernel, threads);
    form_means(works, kernel, threads);
    choose_bf16(works);
    multiply_pieces(works, kernel, threads);
    std::transform(works.begin(), works.end(), traces, trace_of);
}

}  // namespace slimfast
