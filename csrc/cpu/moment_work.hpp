// Layers of moments, cut into the pieces of their products and the splits and parts of their positions.
#pragma once

#include <algorithm>
#include <vector>

#include "moments.hpp"
#include "position_runs.hpp"
#include "scratch.hpp"

namespace slimfast {

// Some rows and columns of a layer's products; `lower`: they end on the diagonal.
struct MomentPiece {
    i64 first_row, rows, first_col, cols;
    bool lower;
};

// A mean in two parts, so that differences of means are as good as the deviations.
struct SplitMeans {
    std::vector<double> mean, rest;

    void resize(i64 count) {
        mean.resize(count);
        rest.resize(count);
    }
};

struct MomentWork {
    MomentLayer& layer;
    bool symmetric;
    i64 panel;
    Positions positions;
    i64 split_parts, splits;
    std::vector<MomentPiece> pieces;
    // Float64 of one piece's sums over one split; there are pieces x splits of them.
    i64 slot;
    Scratch partial;
    // By split and variable, written by the pieces on the diagonal, or in the first column and row.
    SplitMeans x_means, y_means;

    i64 in_panels(i64 variables) const { return round_up(variables, panel); }
    const MomentOperand& y() const { return symmetric ? layer.x : layer.y; }
    double area(const MomentPiece& piece) const {
        return static_cast<double>(piece.rows) * (piece.cols - (piece.lower ? piece.rows / 2 : 0));
    }
    double products() const {
        const double all = static_cast<double>(layer.x.variables) * y().variables * positions.count;
        return symmetric ? all / 2 : all;
    }
    // Positions in splits before `split`.
    i64 positions_before(i64 split) const {
        i64 count = 0;
        const i64 last = std::min(split * split_parts, static_cast<i64>(positions.parts.size()));
        for (i64 part = 0; part < last; ++part) count += positions.parts[part].samples;
        return count;
    }
};

// The layers that have positions; a layer that is much of the work is cut into enough pieces for all threads.
std::vector<MomentWork> cut_layers(std::vector<MomentLayer>& layers, const CovarianceKernels& panels,
                                   int threads);

}  // namespace slimfast
