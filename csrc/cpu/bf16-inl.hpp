// Covariances of bfloat16 samples from their products as they are: exact in float32, they leave only the sums
// to be rounded. The means are taken out of the sums of a block.
//
// With x = mean + deviation, the sum over samples of (x_i - mean_i)(x_j - mean_j) is G_ij - count mean_i
// mean_j where variables are rows; where they are columns, with one mean a sample, G_ij - r_i - r_j + g with
// r_j the sum of mean x_j and g that of mean^2. covariance.cpp says when this loses nothing.
#pragma once

#include "bf16_panels-inl.hpp"
#include "halves-inl.hpp"
#include "kernels.hpp"

namespace slimfast::SLIMFAST_ISA {

// `Products` are the instruction's: multiply(a, b, stride, cells, rows, cols, sums) sets sums.of[r][c] to
// left panel r times right panel c over `cells` cells, for r < rows and c < cols (1 or 2), the panels
// `stride` elements apart; a Setup lives around its calls; and kChainCells cells' products are one sum from
// zero. In float32 a sum has 128 roundings in a row. Here it has fewer, which pays for the means that are
// still in it.

// What is packed of a block's rows or columns stays in L2, and fits where as much is of float32.
template <class Products>
constexpr i64 kChunkSamples = Products::kChainCells * kDepth;
// Columns of a block's sums are padded to a multiple of this, as those of the float32 kernel.
constexpr i64 kSumsPanel = 3 * kPanel;

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
            for (i64 l = 0; l < count; ++l) values[l] = widened(bf16_bits{row[(j + l) * x.col_stride]});
            for (i64 l = 0; l < group; ++l) {
                const double deviation = l < count ? values[l] - high - low : 0.0f;
                sums[l] += deviation * deviation;
            }
        }
        squares[i] = 0;
        for (double sum : sums) squares[i] += sum;
    }
}

// Packs `count` variables from `first` on, `samples` from first_sample on, as cells [panel][cell] of
// the left or the right factor; what is beyond is zero.
template <class Products, bool kIsLeft>
SLIMFAST_INLINE void pack(const CovarianceBlock& block, i64 first, i64 count, i64 first_sample, i64 samples,
                          std::uint16_t* packed) {
    const MatrixView& x = block.x;
    const i64 variable_stride = block.by_rows ? x.row_stride : x.col_stride;
    const i64 sample_stride = block.by_rows ? x.col_stride : x.row_stride;
    const std::uint16_t* data = static_cast<const std::uint16_t*>(x.data);
    for (i64 p = 0; p < count; p += kPanel) {
        const i64 width = smaller(kPanel, count - p);
        for (i64 k = 0; k < samples; k += kDepth) {
            const i64 length = smaller(kDepth, samples - k);
            const std::uint16_t* from =
                data + (first + p) * variable_stride + (first_sample + k) * sample_stride;
            std::uint16_t* to = packed + p * kChunkSamples<Products> + k * kPanel;
            if (width < kPanel || length < kDepth) std::memset(to, 0, kCell * sizeof *to);
            const bool by_pairs = variable_stride == 1;
            if (by_pairs) {
                for (i64 s = 0; s < length; ++s) {
                    const std::uint16_t* run = from + s * sample_stride;
                    std::uint16_t* at = to + s / 2 * kDepth + s % 2;
                    for (i64 v = 0; v < width; ++v) at[2 * v] = run[v];
                }
            } else if (sample_stride == 1) {
                for (i64 v = 0; v < width; ++v) {
                    std::memcpy(to + v * kDepth, from + v * variable_stride, length * sizeof *to);
                }
            } else {
                for (i64 v = 0; v < width; ++v) {
                    for (i64 s = 0; s < length; ++s) {
                        to[v * kDepth + s] = from[v * variable_stride + s * sample_stride];
                    }
                }
            }
            if (by_pairs == kIsLeft) {
                // One factor's cell is the other's with pairs and variables exchanged.
                Vec<float> square[kPanel];
                std::memcpy(square, to, sizeof square);
                transpose<float>(square);
                std::memcpy(to, square, sizeof square);
            }
        }
    }
}

SLIMFAST_INLINE void write_sums(const PanelSums& products, int panels_down, int panels_across, bool add,
                                float* sums, i64 stride) {
    for (int r = 0; r < panels_down; ++r) {
        for (int c = 0; c < panels_across; ++c) {
            for (i64 i = 0; i < kPanel; ++i) {
                float* at = sums + (r * kPanel + i) * stride + c * kPanel;
                const Vec<float> value = load(&products.of[r][c][i * kPanel]);
                store(at, add ? load(at) + value : value);
            }
        }
    }
}

template <class Products>
SLIMFAST_INLINE void multiply_chunk(const CovarianceBlock& block, i64 samples, const std::uint16_t* left,
                                    const std::uint16_t* right, bool add, float* sums, i64 stride) {
    PanelSums products;
    const i64 cells = ceil_div(samples, kDepth);
    for (i64 c = 0; c < block.cols; c += 2 * kPanel) {
        const int across = block.cols - c > kPanel ? 2 : 1;
        for (i64 r = 0; r < block.rows; r += 2 * kPanel) {
            // Above the diagonal.
            if (block.first_row + r + 2 * kPanel <= block.first_col + c) continue;
            const int down = block.rows - r > kPanel ? 2 : 1;
            Products::multiply(left + r * kChunkSamples<Products>, right + c * kChunkSamples<Products>,
                               kPanel * kChunkSamples<Products>, cells, down, across, products);
            write_sums(products, down, across, add, sums + r * stride + c, stride);
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
        for (i64 v = 0; v < count; ++v) terms[v] += mean * widened(bf16_bits{row[v * x.col_stride]});
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

template <class Products>
void bf16_block(const CovarianceBlock& block) {
    const i64 stride = round_up(block.cols, kSumsPanel);
    std::uint16_t* left = static_cast<std::uint16_t*>(block.packed_rows);
    std::uint16_t* right = static_cast<std::uint16_t*>(block.packed_cols);
    float* sums = static_cast<float*>(block.sums);
    {
        [[maybe_unused]] const typename Products::Setup setup;
        bool add = block.add;
        for (i64 k = block.first_sample; k < block.last_sample; k += kChunkSamples<Products>, add = true) {
            const i64 samples = smaller(kChunkSamples<Products>, block.last_sample - k);
            pack<Products, true>(block, block.first_row, block.rows, k, samples, left);
            pack<Products, false>(block, block.first_col, block.cols, k, samples, right);
            multiply_chunk<Products>(block, samples, left, right, add, sums, stride);
        }
    }
    // The packed samples are done with.
    double* of_rows = static_cast<double*>(block.packed_rows);
    double* of_cols = static_cast<double*>(block.packed_cols);
    mean_terms(block, block.first_row, block.rows, of_rows);
    mean_terms(block, block.first_col, block.cols, of_cols);
    centre(block, of_rows, of_cols, sums, stride);
}

}  // namespace slimfast::SLIMFAST_ISA
