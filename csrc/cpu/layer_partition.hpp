// How the covariance of one layer is cut into pieces of work.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "covariance.hpp"
#include "scratch.hpp"

namespace slimfast {

// Rows and columns of one work item; see CovarianceBlock.
struct TrianglePiece {
    i64 first_row, rows, first_col, cols;

    // Products of each of its samples.
    double area() const {
        const bool lower = first_row + rows == first_col + cols;
        return static_cast<double>(rows) * (cols - (lower ? rows / 2 : 0));
    }
};

// The lower triangle of m variables in pieces, each summed in `splits` parts of the samples; d is the layer's
// positions. Variables come in `panels` panels of `panel`.
struct LayerPartition {
    i64 m, d, samples, panel, panels, splits, split_samples;
    std::vector<TrianglePiece> pieces;
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

// The parts of the samples. They depend on the layer's shape alone, because they are in the result.
LayerPartition partition_samples(const CovarianceLayer& layer, const CovarianceKernels& kernels);

// The pieces: at least `least`, where the triangle has as many panels. A sum's terms and their order are the
// same in all of them.
void partition_triangle(LayerPartition& partition, i64 element_bytes, i64 least);

}  // namespace slimfast
