// Centred products of positions that lie in runs, and their sums in float64.
#pragma once

#include "covariance-inl.hpp"

namespace slimfast::SLIMFAST_ISA {

// sums[v] += x less base[v] over the samples of a run, variables that are neighbours in memory.
template <class Source>
void add_neighbours(const Source* data, i64 step, i64 samples, i64 variables, const double* base,
                    double* sums) {
    // So many samples at a time, so that sums are read and written once for them.
    constexpr i64 together = 8;
    i64 k = 0;
    for (; k + together <= samples; k += together) {
        const Source* at = data + k * step;
        for (i64 v = 0; v < variables; ++v) {
            double sum = 0;
            for (i64 j = 0; j < together; ++j) sum += widened(at[j * step + v]) - base[v];
            sums[v] += sum;
        }
    }
    for (; k < samples; ++k) {
        for (i64 v = 0; v < variables; ++v) sums[v] += widened(data[k * step + v]) - base[v];
    }
}

// The same for variables at any distance, whose samples may be neighbours.
template <class Source>
void add_rows(const Source* data, i64 variable_stride, i64 step, i64 samples, i64 variables,
              const double* base, double* sums) {
    constexpr i64 width = 16;
    for (i64 v = 0; v < variables; ++v) {
        const Source* row = data + v * variable_stride;
        double partial[width] = {};
        i64 k = 0;
        if (step == 1) {
            for (; k + width <= samples; k += width) {
                for (i64 l = 0; l < width; ++l) partial[l] += widened(row[k + l]) - base[v];
            }
        }
        double sum = 0;
        for (i64 l = 0; l < width; ++l) sum += partial[l];
        for (; k < samples; ++k) sum += widened(row[k * step]) - base[v];
        sums[v] += sum;
    }
}

template <class Source>
void moment_means_of(const MomentBlock& block, bool of_y, i64 first, i64 last, double* mean, double* rest) {
    const MomentOperand& x = of_y ? block.y : block.x;
    const i64 step = of_y ? block.steps.y : block.steps.x;
    const i64 count = last - first;
    // For float64 a second pass over the differences holds what the first one rounded away, as in
    // row_means_of.
    for (int pass = 0; pass < (sizeof(Source) == 8 ? 2 : 1); ++pass) {
        double* sums = (pass == 0 ? mean : rest) + first;
        // The second pass has the means as its base, the first one zeros.
        if (pass == 0) {
            for (i64 v = 0; v < count; ++v) rest[first + v] = 0.0;
        }
        const double* base = (pass == 0 ? rest : mean) + first;
        for (i64 v = 0; v < count; ++v) sums[v] = 0.0;
        for (i64 r = 0; r < block.run_count; ++r) {
            const PositionRun& run = block.runs[r];
            const Source* data =
                static_cast<const Source*>(x.data) + first * x.variable_stride + (of_y ? run.y : run.x);
            if (x.variable_stride == 1) {
                add_neighbours(data, step, run.samples, count, base, sums);
            } else {
                add_rows(data, x.variable_stride, step, run.samples, count, base, sums);
            }
        }
        for (i64 v = 0; v < count; ++v) sums[v] /= static_cast<double>(block.samples);
    }
    if (sizeof(Source) == 8) return;
    for (i64 v = first; v < last; ++v) {
        const double found = mean[v];
        mean[v] = static_cast<float>(found);
        rest[v] = found - mean[v];
    }
}

void moment_means(const MomentBlock& block, bool of_y, i64 first, i64 last, double* mean, double* rest) {
    switch ((of_y ? block.y : block.x).dtype) {
        case Dtype::kFloat64:
            return moment_means_of<double>(block, of_y, first, last, mean, rest);
        case Dtype::kBfloat16:
            return moment_means_of<bf16_bits>(block, of_y, first, last, mean, rest);
        case Dtype::kFloat16:
            return moment_means_of<f16_bits>(block, of_y, first, last, mean, rest);
        default:
            return moment_means_of<float>(block, of_y, first, last, mean, rest);
    }
}

// Packs `samples` samples of an operand, from sample `at` of the run `run` on, piece by piece of its runs.
template <class Source, class T>
void pack_positions_of(const MomentBlock& block, bool of_y, i64 first, i64 count, i64 run, i64 at,
                       i64 samples, T* packed) {
    const MomentOperand& x = of_y ? block.y : block.x;
    const i64 step = of_y ? block.steps.y : block.steps.x;
    for (i64 done = 0; done < samples; ++run, at = 0) {
        const i64 here = smaller(block.runs[run].samples - at, samples - done);
        const Source* data =
            static_cast<const Source*>(x.data) + (of_y ? block.runs[run].y : block.runs[run].x) + at * step;
        const Centred from{{data, x.dtype, x.variables, here, x.variable_stride, step},
                           true,
                           of_y ? block.y_mean : block.x_mean,
                           of_y ? block.y_rest : block.x_rest};
        pack<Source, T>(from, first, count, 0, here, samples, packed + done * Tile<T>::kPanel);
        done += here;
    }
}

template <class T>
void pack_positions(const MomentBlock& block, bool of_y, i64 first, i64 count, i64 run, i64 at, i64 samples,
                    T* packed) {
    switch ((of_y ? block.y : block.x).dtype) {
        case Dtype::kFloat64:
            return pack_positions_of<double, T>(block, of_y, first, count, run, at, samples, packed);
        case Dtype::kBfloat16:
            return pack_positions_of<bf16_bits, T>(block, of_y, first, count, run, at, samples, packed);
        case Dtype::kFloat16:
            return pack_positions_of<f16_bits, T>(block, of_y, first, count, run, at, samples, packed);
        default:
            return pack_positions_of<float, T>(block, of_y, first, count, run, at, samples, packed);
    }
}

// Samples whose products are one chain of additions: half of a covariance's, because a part has few chains
// whose errors could cancel.
constexpr i64 kChainSamples = kChunkSamples / 2;

template <class T>
void multiply_moments(const MomentBlock& block) {
    const i64 cols = round_up(block.cols, Tile<T>::kPanel);
    // Without a diagonal every column is left of it.
    const i64 diagonal = block.lower ? block.first_row - block.first_col : cols;
    T* packed_cols = static_cast<T*>(block.packed_cols);
    T* sums = static_cast<T*>(block.sums);
    i64 run = 0, at = 0;
    for (i64 k = 0; k < block.samples; k += kChainSamples) {
        const i64 samples = smaller(kChainSamples, block.samples - k);
        T* packed_rows = block.lower ? packed_cols + diagonal * samples : static_cast<T*>(block.packed_rows);
        pack_positions<T>(block, !block.lower, block.first_col, block.cols, run, at, samples, packed_cols);
        if (!block.lower) {
            pack_positions<T>(block, false, block.first_row, block.rows, run, at, samples, packed_rows);
        }
        if (k == 0) {
            multiply_packed<T, false>(diagonal, block.rows, cols, samples, packed_rows, packed_cols, sums);
        } else {
            multiply_packed<T, true>(diagonal, block.rows, cols, samples, packed_rows, packed_cols, sums);
        }
        for (at += samples; run < block.run_count && at >= block.runs[run].samples; ++run) {
            at -= block.runs[run].samples;
        }
    }
}

template <class T>
void add_moments(const MomentBlock& block, bool fresh, double weight, const double* row_apart,
                 const double* col_apart, double* total) {
    const i64 stride = round_up(block.cols, Tile<T>::kPanel);
    const i64 diagonal = block.first_row - block.first_col;
    const T* sums = static_cast<const T*>(block.sums);
    for (i64 r = 0; r < block.rows; ++r, sums += stride, total += stride) {
        const i64 count = block.lower ? diagonal + r + 1 : block.cols;
        const double scale = weight * row_apart[r];
        if (fresh) {
            for (i64 c = 0; c < count; ++c) total[c] = sums[c];
        } else {
            for (i64 c = 0; c < count; ++c) total[c] += sums[c] + scale * col_apart[c];
        }
    }
}

constexpr MomentKernels kMomentKernels{moment_means, multiply_moments<float>, multiply_moments<double>,
                                       add_moments<float>, add_moments<double>};

}  // namespace slimfast::SLIMFAST_ISA
