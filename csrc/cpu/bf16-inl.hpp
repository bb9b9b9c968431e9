// Covariances of bfloat16 samples from their products as they are: exact in float32, they leave only the sums
// to be rounded. The means are taken out of the sums of a block.
//
// With x = mean + deviation, the sum over samples of (x_i - mean_i)(x_j - mean_j) is G_ij - count mean_i
// mean_j where variables are rows; where they are columns, with one mean a sample, G_ij - r_i - r_j + g with
// r_j the sum of mean x_j and g that of mean^2. covariance.cpp says when this loses nothing.
#pragma once

#include "bf16_dot-inl.hpp"
#include "kernels.hpp"

namespace slimfast::SLIMFAST_ISA {

// What is packed of a block's rows or columns stays in L2, and fits where as much is of float32.
constexpr i64 chunk_samples = chain_cells * depth;
// Columns of a block's sums are padded to a multiple of this, as those of the float32 kernel.
constexpr i64 sums_panel = 3 * panel;

void row_squares(const MatrixView& x, i64 first, i64 last, const double* mean, const double* rest,
                 double* squares) {
    const std::uint16_t* data = static_cast<const std::uint16_t*>(x.data);
    constexpr i64 group = 16;
    for (i64 i = first; i < last; ++i) {
        const std::uint16_t* row = data + i * x.row_stride;
        // The first difference is exact or rounded once, as where float32 is packed.
        const float high = static_cast<float>(mean[i]), low = static_cast<float>(rest[i]);
        double sums[group] = {};
        for (i64 j = 0; j < x.cols; j += group) {
            const i64 count = smaller(group, x.cols - j);
            float values[group];
            for (i64 l = 0; l < group; ++l) values[l] = high;
            for (i64 l = 0; l < count; ++l) values[l] = widened(row[(j + l) * x.col_stride]);
            for (i64 l = 0; l < group; ++l) {
                const double deviation = l < count ? values[l] - high - low : 0.0f;
                sums[l] += deviation * deviation;
            }
        }
        squares[i] = 0;
        for (double sum : sums) squares[i] += sum;
    }
}

// Packs `count` variables from `first` on, `samples` from first_sample on, as cells [panel][chain_cells] of
// the left or the right factor; what is beyond is zero.
template <bool is_left>
SLIMFAST_INLINE void pack(const CovarianceBlock& block, i64 first, i64 count, i64 first_sample, i64 samples,
                          std::uint16_t* packed) {
    const MatrixView& x = block.x;
    const i64 variable_stride = block.by_rows ? x.row_stride : x.col_stride;
    const i64 sample_stride = block.by_rows ? x.col_stride : x.row_stride;
    const std::uint16_t* data = static_cast<const std::uint16_t*>(x.data);
    for (i64 p = 0; p < count; p += panel) {
        const i64 width = smaller(panel, count - p);
        for (i64 k = 0; k < samples; k += depth) {
            const i64 length = smaller(depth, samples - k);
            const std::uint16_t* from =
                data + (first + p) * variable_stride + (first_sample + k) * sample_stride;
            std::uint16_t* to = packed + p * chunk_samples + k * panel;
            if (width < panel || length < depth) std::memset(to, 0, cell * sizeof *to);
            const bool by_pairs = variable_stride == 1;
            if (by_pairs) {
                for (i64 s = 0; s < length; ++s) {
                    const std::uint16_t* run = from + s * sample_stride;
                    std::uint16_t* at = to + s / 2 * depth + s % 2;
                    for (i64 v = 0; v < width; ++v) at[2 * v] = run[v];
                }
            } else if (sample_stride == 1) {
                for (i64 v = 0; v < width; ++v) {
                    std::memcpy(to + v * depth, from + v * variable_stride, length * sizeof *to);
                }
            } else {
                for (i64 v = 0; v < width; ++v) {
                    for (i64 s = 0; s < length; ++s) {
                        to[v * depth + s] = from[v * variable_stride + s * sample_stride];
                    }
                }
            }
            if (by_pairs == is_left) {
                // One factor's cell is the other's with pairs and variables exchanged.
                Vec<float> square[panel];
                std::memcpy(square, to, sizeof square);
                transpose<float>(square);
                std::memcpy(to, square, sizeof square);
            }
        }
    }
}

SLIMFAST_INLINE void write_sums(const Sums& found, int panels_down, int panels_across, bool add, float* sums,
                                i64 stride) {
    for (int r = 0; r < panels_down; ++r) {
        for (int c = 0; c < panels_across; ++c) {
            for (i64 i = 0; i < panel; ++i) {
                float* at = sums + (r * panel + i) * stride + c * panel;
                const Vec<float> value = load(&found.of[r][c][i * panel]);
                store(at, add ? load(at) + value : value);
            }
        }
    }
}

SLIMFAST_INLINE void multiply_chunk(const CovarianceBlock& block, i64 samples, const std::uint16_t* left,
                                    const std::uint16_t* right, bool add, float* sums, i64 stride) {
    Sums found;
    const i64 cells = ceil_div(samples, depth);
    for (i64 c = 0; c < block.cols; c += 2 * panel) {
        const int across = block.cols - c > panel ? 2 : 1;
        for (i64 r = 0; r < block.rows; r += 2 * panel) {
            // Above the diagonal.
            if (block.first_row + r + 2 * panel <= block.first_col + c) continue;
            const int down = block.rows - r > panel ? 2 : 1;
            panels_product(left + r * chunk_samples, right + c * chunk_samples, panel * chunk_samples, cells,
                           down, across, found);
            write_sums(found, down, across, add, sums + r * stride + c, stride);
        }
    }
}

// What the means of `count` variables from `first` on take out of the block's sums: where variables are rows
// the mean of each, else the sum of its samples times their means.
SLIMFAST_INLINE void mean_terms(const CovarianceBlock& block, i64 first, i64 count, double* terms) {
    if (block.by_rows) {
        for (i64 v = 0; v < count; ++v) terms[v] = block.mean[first + v] + block.rest[first + v];
        return;
    }
    const MatrixView& x = block.x;
    const std::uint16_t* data = static_cast<const std::uint16_t*>(x.data);
    for (i64 v = 0; v < count; ++v) terms[v] = 0;
    for (i64 s = block.first_sample; s < block.last_sample; ++s) {
        const std::uint16_t* row = data + s * x.row_stride + first * x.col_stride;
        const double mean = block.mean[s] + block.rest[s];
        for (i64 v = 0; v < count; ++v) terms[v] += mean * widened(row[v * x.col_stride]);
    }
}

SLIMFAST_INLINE void centre(const CovarianceBlock& block, const double* of_rows, const double* of_cols,
                            float* sums, i64 stride) {
    const double count = static_cast<double>(block.last_sample - block.first_sample);
    double squares = 0;
    for (i64 s = block.first_sample; s < (block.by_rows ? block.first_sample : block.last_sample); ++s) {
        const double mean = block.mean[s] + block.rest[s];
        squares += mean * mean;
    }
    for (i64 r = 0; r < block.rows; ++r, sums += stride) {
        const double of_row = block.by_rows ? count * of_rows[r] : of_rows[r] - squares;
        if (block.by_rows) {
            for (i64 c = 0; c < block.cols; ++c) sums[c] = static_cast<float>(sums[c] - of_row * of_cols[c]);
        } else {
            for (i64 c = 0; c < block.cols; ++c)
                sums[c] = static_cast<float>(sums[c] - (of_row + of_cols[c]));
        }
    }
}

void bf16_block(const CovarianceBlock& block) {
    const i64 stride = round_up(block.cols, sums_panel);
    std::uint16_t* left = static_cast<std::uint16_t*>(block.packed_rows);
    std::uint16_t* right = static_cast<std::uint16_t*>(block.packed_cols);
    float* sums = static_cast<float*>(block.sums);
    {
        [[maybe_unused]] const Tiles tiles;
        bool add = block.add;
        for (i64 k = block.first_sample; k < block.last_sample; k += chunk_samples, add = true) {
            const i64 samples = smaller(chunk_samples, block.last_sample - k);
            pack<true>(block, block.first_row, block.rows, k, samples, left);
            pack<false>(block, block.first_col, block.cols, k, samples, right);
            multiply_chunk(block, samples, left, right, add, sums, stride);
        }
    }
    // The packed samples are done with.
    double* of_rows = static_cast<double*>(block.packed_rows);
    double* of_cols = static_cast<double*>(block.packed_cols);
    mean_terms(block, block.first_row, block.rows, of_rows);
    mean_terms(block, block.first_col, block.cols, of_cols);
    centre(block, of_rows, of_cols, sums, stride);
}

extern const Bf16Kernels bf16_kernels;
const Bf16Kernels bf16_kernels{row_squares, bf16_block};

}  // namespace slimfast::SLIMFAST_ISA
