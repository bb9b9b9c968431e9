// Centred rank-k updates: samples packed with their mean taken out, then a register tile per ISA.
#pragma once

#include "kernels.hpp"
#include "packing-inl.hpp"
#include "simd.hpp"

namespace slimfast::SLIMFAST_ISA {

template <class Source>
void row_means_of(const MatrixView& x, i64 first, i64 last, double* mean, double* rest) {
    const Source* data = static_cast<const Source*>(x.data);
    constexpr i64 group = 16;
    double sums[group];
    // A second pass over the differences: for float64 it holds what the first pass rounded away, for the rest
    // of the types it is exact already and only split so that the float part can be subtracted without a
    // rounding.
    const int passes = sizeof(Source) == 8 ? 2 : 1;
    for (i64 i = first; i < last; i += group) {
        const i64 count = smaller(group, last - i);
        for (int pass = 0; pass < passes; ++pass) {
            double base[group] = {};
            for (i64 r = 0; r < count; ++r) base[r] = pass == 0 ? 0.0 : mean[i + r];
            for (i64 r = 0; r < group; ++r) sums[r] = 0.0;
            if (x.col_stride == 1) {
                for (i64 r = 0; r < count; ++r) {
                    const Source* row = data + (i + r) * x.row_stride;
                    double partial[group] = {};
                    i64 j = 0;
                    for (; j + group <= x.cols; j += group) {
                        for (i64 l = 0; l < group; ++l) partial[l] += widened(row[j + l]) - base[r];
                    }
                    for (; j < x.cols; ++j) partial[0] += widened(row[j]) - base[r];
                    for (i64 l = 0; l < group; ++l) sums[r] += partial[l];
                }
            } else {
                for (i64 j = 0; j < x.cols; ++j) {
                    const Source* column = data + i * x.row_stride + j * x.col_stride;
                    for (i64 r = 0; r < count; ++r) sums[r] += widened(column[r * x.row_stride]) - base[r];
                }
            }
            for (i64 r = 0; r < count; ++r) {
                const double found = sums[r] / static_cast<double>(x.cols);
                if (sizeof(Source) == 8) {
                    (pass == 0 ? mean : rest)[i + r] = found;
                } else {
                    mean[i + r] = static_cast<float>(found);
                    rest[i + r] = found - mean[i + r];
                }
            }
        }
    }
}

void row_means(const MatrixView& x, i64 first, i64 last, double* mean, double* rest) {
    switch (x.dtype) {
        case Dtype::kFloat64:
            return row_means_of<double>(x, first, last, mean, rest);
        case Dtype::kBfloat16:
            return row_means_of<bf16_bits>(x, first, last, mean, rest);
        case Dtype::kFloat16:
            return row_means_of<f16_bits>(x, first, last, mean, rest);
        default:
            return row_means_of<float>(x, first, last, mean, rest);
    }
}

// sums[r][c] (+)= sum over k of a[k][r] * b[k][c] for one register tile of rows x vectors; `a` and `b` point
// into packed panels.
template <class T, bool kAdd, int kRows, int kVectors>
SLIMFAST_INLINE void tile_product(i64 samples, const T* a, const T* b, T* sums, i64 sums_stride) {
    Vec<T> tile[kRows][kVectors] = {};
    for (i64 k = 0; k < samples; ++k) {
        Vec<T> right[kVectors];
        for (int c = 0; c < kVectors; ++c) right[c] = load(b + c * kLanes<T>);
        for (int r = 0; r < kRows; ++r) {
            const Vec<T> left = splat(a[r]);
            for (int c = 0; c < kVectors; ++c) tile[r][c] += left * right[c];
        }
        a += Tile<T>::kPanel;
        b += Tile<T>::kPanel;
    }
    for (int r = 0; r < kRows; ++r) {
        for (int c = 0; c < kVectors; ++c) {
            T* at = sums + r * sums_stride + c * kLanes<T>;
            store(at, kAdd ? load(at) + tile[r][c] : tile[r][c]);
        }
    }
}

// The tiles on the diagonal of a panel, in `down` rows from its first column on: of each only the vectors
// that reach below the diagonal are summed. Returns the row behind them.
template <class T, bool kAdd, int kVectors = 1>
SLIMFAST_INLINE i64 diagonal_tiles(i64 samples, i64 down, const T* a, const T* b, T* sums, i64 sums_stride,
                                   i64 row = 0) {
    // One vector a row is too few sums to keep the multipliers busy, unless there are more rows.
    constexpr int rows = kVectors == 1 && kLanes<T> > Tile<T>::kRows ? kLanes<T> : Tile<T>::kRows;
    for (; row < down && row + rows <= kVectors * kLanes<T>; row += rows) {
        tile_product<T, kAdd, rows, kVectors>(samples, a + row, b, sums + row * sums_stride, sums_stride);
    }
    if constexpr (kVectors < Tile<T>::kVectors) {
        return diagonal_tiles<T, kAdd, kVectors + 1>(samples, down, a, b, sums, sums_stride, row);
    } else {
        return row;
    }
}

// Adds the squares of the values to a sum in two parts. Chains are short, so that what each loses is one of
// many independent roundings, and their sums are added without loss.
template <class T>
void add_squares(const T* values, i64 count, SplitSum& to) {
    constexpr i64 width = 16, chain = 16;
    double sums[width] = {}, lost[width] = {};
    for (i64 i = 0; i < count;) {
        double part[width] = {};
        const i64 end = smaller(i + chain * width, count);
        for (; i + width <= end; i += width) {
            for (i64 l = 0; l < width; ++l) part[l] += static_cast<double>(values[i + l]) * values[i + l];
        }
        for (i64 l = 0; i < end; ++i, ++l) part[l] += static_cast<double>(values[i]) * values[i];
        for (i64 l = 0; l < width; ++l) {
            // The sum of two and its error (Knuth), without a branch.
            const double next = sums[l] + part[l], added = next - sums[l];
            lost[l] += (sums[l] - (next - added)) + (part[l] - added);
            sums[l] = next;
        }
    }
    for (i64 l = 0; l < width; ++l) {
        add_exactly(sums[l], to.value, to.lost);
        to.lost += lost[l];
    }
}

// Rows times columns, of which column `diagonal` is that of row 0: what is above the diagonal may be left
// out.
template <class T, bool kAdd>
void multiply_packed(i64 diagonal, i64 rows, i64 cols, i64 samples, const T* packed_rows,
                     const T* packed_cols, T* sums) {
    constexpr i64 panel = Tile<T>::kPanel;
    for (i64 c = 0; c < cols; c += panel) {
        const T* b = packed_cols + c * samples;
        i64 r = larger<i64>(c - diagonal, 0);
        if (c >= diagonal) {
            r += diagonal_tiles<T, kAdd>(samples, rows - r, packed_rows + r * samples, b, sums + r * cols + c,
                                         cols);
        }
        for (; r < rows; r += Tile<T>::kRows) {
            const T* a = packed_rows + r / panel * panel * samples + r % panel;
            tile_product<T, kAdd, Tile<T>::kRows, Tile<T>::kVectors>(samples, a, b, sums + r * cols + c,
                                                                     cols);
        }
    }
}

template <class Source, class T>
void block_of(const CovarianceBlock& block) {
    constexpr i64 panel = Tile<T>::kPanel;
    // Where the block's last column is its last row, its rows are among its columns.
    const bool lower = block.first_row + block.rows == block.first_col + block.cols;
    const i64 diagonal = block.first_row - block.first_col;
    const i64 cols = round_up(block.cols, panel);
    const Centred from{block.x, block.by_rows, block.mean, block.rest};
    T* packed_cols = static_cast<T*>(block.packed_cols);
    T* sums = static_cast<T*>(block.sums);
    for (i64 k = block.first_sample; k < block.last_sample; k += kChunkSamples) {
        const i64 samples = smaller(kChunkSamples, block.last_sample - k);
        T* packed_rows = lower ? packed_cols + diagonal * samples : static_cast<T*>(block.packed_rows);
        pack<Source, T>(from, block.first_col, block.cols, k, samples, samples, packed_cols);
        if (lower) {
            for (i64 p = 0; p * panel < block.rows; ++p) {
                add_squares(packed_rows + p * panel * samples, panel * samples, block.squares[p]);
            }
        } else {
            pack<Source, T>(from, block.first_row, block.rows, k, samples, samples, packed_rows);
        }
        if (k == block.first_sample && !block.add) {
            multiply_packed<T, false>(diagonal, block.rows, cols, samples, packed_rows, packed_cols, sums);
        } else {
            multiply_packed<T, true>(diagonal, block.rows, cols, samples, packed_rows, packed_cols, sums);
        }
    }
}

// rows x cols sums, scaled, to `out` and mirrored to `mirrored`, both of row stride m; with `diagonal` less
// than kLanes<T> only what is in columns <= row + diagonal.
template <class T>
void write_square(const T* sums, i64 stride, i64 rows, i64 cols, i64 diagonal, T scale, T* out, T* mirrored,
                  i64 m) {
    constexpr i64 v = kLanes<T>;
    if (rows == v && cols == v && diagonal >= v) {
        Vec<T> square[v];
        for (i64 r = 0; r < v; ++r) {
            square[r] = load(sums + r * stride) * scale;
            store(out + r * m, square[r]);
        }
        transpose<T>(square);
        for (i64 c = 0; c < v; ++c) store(mirrored + c * m, square[c]);
        return;
    }
    for (i64 r = 0; r < rows; ++r) {
        for (i64 c = 0; c < smaller(cols, r + diagonal + 1); ++c) {
            out[r * m + c] = mirrored[c * m + r] = sums[r * stride + c] * scale;
        }
    }
}

template <class T>
void write_block(const CovarianceBlock& block, double scale, void* out, i64 m) {
    // Two squares below each other, so that a line of the mirrored side is written at once.
    constexpr i64 v = kLanes<T>, together = 2 * v;
    const i64 stride = round_up(block.cols, Tile<T>::kPanel);
    const i64 below = block.first_row - block.first_col;
    T* corner = static_cast<T*>(out) + block.first_row * m + block.first_col;
    T* mirrored = static_cast<T*>(out) + block.first_col * m + block.first_row;
    for (i64 r0 = 0; r0 < block.rows; r0 += together) {
        for (i64 c = 0; c < smaller(block.cols, below + r0 + together); c += v) {
            for (i64 r = r0; r < smaller(r0 + together, block.rows); r += v) {
                write_square(static_cast<const T*>(block.sums) + r * stride + c, stride,
                             smaller(v, block.rows - r), smaller(v, block.cols - c), below + r - c,
                             static_cast<T>(scale), corner + r * m + c, mirrored + c * m + r, m);
            }
        }
    }
}

template <class T>
void covariance_block(const CovarianceBlock& block) {
    switch (block.x.dtype) {
        case Dtype::kFloat64:
            return block_of<double, T>(block);
        case Dtype::kBfloat16:
            return block_of<bf16_bits, T>(block);
        case Dtype::kFloat16:
            return block_of<f16_bits, T>(block);
        default:
            return block_of<float, T>(block);
    }
}

constexpr CovarianceKernels kCovarianceKernels{row_means,
                                               covariance_block<float>,
                                               covariance_block<double>,
                                               write_block<float>,
                                               write_block<double>,
                                               Tile<float>::kPanel,
                                               Tile<double>::kPanel,
                                               kChunkSamples,
                                               nullptr};

}  // namespace slimfast::SLIMFAST_ISA
