// Centred rank-k updates: samples packed with their mean taken out, then a register tile per ISA.
#pragma once

#include "kernels.hpp"
#include "simd.hpp"

namespace slimfast::SLIMFAST_ISA {

struct bf16_bits {
    std::uint16_t bits;
};
struct f16_bits {
    std::uint16_t bits;
};

SLIMFAST_INLINE double widened(double x) { return x; }
SLIMFAST_INLINE float widened(float x) { return x; }
SLIMFAST_INLINE float widened(bf16_bits x) {
    const std::uint32_t bits = std::uint32_t{x.bits} << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
// Shifting the exponent and mantissa into place and multiplying by 2^112 rebases the exponent, subnormals
// included.
SLIMFAST_INLINE float widened(f16_bits x) {
    const std::uint32_t magnitude = std::uint32_t{x.bits & 0x7fffu} << 13;
    float rebased;
    std::memcpy(&rebased, &magnitude, sizeof rebased);
    rebased *= 0x1p112f;
    std::uint32_t bits;
    std::memcpy(&bits, &rebased, sizeof bits);
    bits = magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : bits;
    bits |= std::uint32_t{x.bits & 0x8000u} << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// Samples per packed chunk: a panel of them stays in L1, and a product sum of this many terms is added up at
// a time.
constexpr i64 chunk_samples = 128;

// The register tile: `rows` x `panel` sums, where panels of `panel` variables are what is packed.
template <class T>
struct Tile {
    static constexpr int vectors = lanes<T> == 2 ? 2 : 3;
    static constexpr int panel = vectors * lanes<T>;
    static constexpr int rows = SLIMFAST_REGISTERS == 32 ? 8 : 4;
    static_assert(panel % rows == 0);
};

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
        case Dtype::f64:
            return row_means_of<double>(x, first, last, mean, rest);
        case Dtype::bf16:
            return row_means_of<bf16_bits>(x, first, last, mean, rest);
        case Dtype::f16:
            return row_means_of<f16_bits>(x, first, last, mean, rest);
        default:
            return row_means_of<float>(x, first, last, mean, rest);
    }
}

template <class Source, class T>
struct Working {
    using type = float;
};
template <class Source>
struct Working<Source, double> {
    using type = double;
};
template <class T>
struct Working<double, T> {
    using type = double;
};
template <>
struct Working<double, double> {
    using type = double;
};

// `samples` centred values of one variable, read at any stride into row.
template <class Source, class W>
SLIMFAST_INLINE void centred_row(const CovarianceBlock& block, const Source* from, i64 stride, i64 variable,
                                 i64 first_sample, i64 samples, W* row) {
    if (stride == 1) {
        for (i64 k = 0; k < samples; ++k) row[k] = static_cast<W>(widened(from[k]));
    } else {
        for (i64 k = 0; k < samples; ++k) row[k] = static_cast<W>(widened(from[k * stride]));
    }
    if (block.by_rows) {
        const W mean = static_cast<W>(block.mean[variable]);
        const W rest = static_cast<W>(block.rest[variable]);
        for (i64 k = 0; k < samples; ++k) row[k] = row[k] - mean - rest;
    } else {
        const double* mean = block.mean + first_sample;
        const double* rest = block.rest + first_sample;
        for (i64 k = 0; k < samples; ++k) row[k] = row[k] - static_cast<W>(mean[k]) - static_cast<W>(rest[k]);
    }
}

// One panel whose variables are neighbours in memory: every sample is a short run. `width` is Tile<T>::panel,
// as a constant where it can be.
template <class Source, class T>
SLIMFAST_INLINE void pack_runs(const CovarianceBlock& block, const Source* corner, i64 sample_stride,
                               i64 variable, i64 width, i64 first_sample, i64 samples, T* packed) {
    using W = typename Working<Source, T>::type;
    constexpr i64 panel = Tile<T>::panel;
    W means[panel], rests[panel];
    for (i64 r = 0; r < width; ++r) {
        means[r] = block.by_rows ? static_cast<W>(block.mean[variable + r]) : W{0};
        rests[r] = block.by_rows ? static_cast<W>(block.rest[variable + r]) : W{0};
    }
    for (i64 k = 0; k < samples; ++k) {
        const Source* from = corner + k * sample_stride;
        T* to = packed + k * panel;
        if (block.by_rows) {
            for (i64 r = 0; r < width; ++r) {
                to[r] = static_cast<T>(static_cast<W>(widened(from[r])) - means[r] - rests[r]);
            }
        } else {
            const W mean = static_cast<W>(block.mean[first_sample + k]);
            const W rest = static_cast<W>(block.rest[first_sample + k]);
            for (i64 r = 0; r < width; ++r)
                to[r] = static_cast<T>(static_cast<W>(widened(from[r])) - mean - rest);
        }
        for (i64 r = width; r < panel; ++r) to[r] = 0;
    }
}

constexpr i64 prefetch_rows = 4;

// Packs `count` variables from `first` on, `samples` samples each, into panels [variable
// panel][sample][variable], centred; variables beyond `count` are zero.
template <class Source, class T>
void pack(const CovarianceBlock& block, i64 first, i64 count, i64 first_sample, i64 samples, T* packed) {
    using W = typename Working<Source, T>::type;
    constexpr i64 panel = Tile<T>::panel;
    constexpr i64 v = lanes<T>;
    const MatrixView& x = block.x;
    const Source* data = static_cast<const Source*>(x.data);
    const i64 variable_stride = block.by_rows ? x.row_stride : x.col_stride;
    const i64 sample_stride = block.by_rows ? x.col_stride : x.row_stride;
    for (i64 p = 0; p < count; p += panel, packed += panel * samples) {
        const i64 width = smaller(panel, count - p);
        const Source* corner = data + (first + p) * variable_stride + first_sample * sample_stride;
        if (variable_stride == 1) {
            if (width == panel) {
                pack_runs<Source, T>(block, corner, sample_stride, first + p, panel, first_sample, samples,
                                     packed);
            } else {
                pack_runs<Source, T>(block, corner, sample_stride, first + p, width, first_sample, samples,
                                     packed);
            }
            continue;
        }
        for (i64 r0 = 0; r0 < panel; r0 += v) {
            alignas(64) T rows[v][chunk_samples];
            for (i64 r = 0; r < v; ++r) {
                W row[chunk_samples];
                // Rows lie far apart, so the machine does not see the next one coming.
                if (sample_stride == 1 && p + r0 + r + prefetch_rows < count) {
                    const Source* ahead = corner + (r0 + r + prefetch_rows) * variable_stride;
                    for (i64 k = 0; k < samples; k += 64 / sizeof(Source)) __builtin_prefetch(ahead + k);
                }
                if (r0 + r < width) {
                    centred_row(block, corner + (r0 + r) * variable_stride, sample_stride, first + p + r0 + r,
                                first_sample, samples, row);
                    for (i64 k = 0; k < samples; ++k) rows[r][k] = static_cast<T>(row[k]);
                } else {
                    for (i64 k = 0; k < samples; ++k) rows[r][k] = 0;
                }
            }
            i64 k = 0;
            for (; k + v <= samples; k += v) {
                Vec<T> square[v];
                for (i64 r = 0; r < v; ++r) square[r] = load(&rows[r][k]);
                transpose<T>(square);
                for (i64 c = 0; c < v; ++c) store(packed + (k + c) * panel + r0, square[c]);
            }
            for (; k < samples; ++k) {
                for (i64 r = 0; r < v; ++r) packed[k * panel + r0 + r] = rows[r][k];
            }
        }
    }
}

// sums[r][c] (+)= sum over k of a[k][r] * b[k][c] for one register tile; `a` and `b` point into packed
// panels.
template <class T, bool add>
SLIMFAST_INLINE void tile_product(i64 samples, const T* a, const T* b, T* sums, i64 sums_stride) {
    using Shape = Tile<T>;
    Vec<T> tile[Shape::rows][Shape::vectors] = {};
    for (i64 k = 0; k < samples; ++k) {
        Vec<T> right[Shape::vectors];
        for (int c = 0; c < Shape::vectors; ++c) right[c] = load(b + c * lanes<T>);
        for (int r = 0; r < Shape::rows; ++r) {
            const Vec<T> left = splat(a[r]);
            for (int c = 0; c < Shape::vectors; ++c) tile[r][c] += left * right[c];
        }
        a += Shape::panel;
        b += Shape::panel;
    }
    for (int r = 0; r < Shape::rows; ++r) {
        for (int c = 0; c < Shape::vectors; ++c) {
            T* at = sums + r * sums_stride + c * lanes<T>;
            store(at, add ? load(at) + tile[r][c] : tile[r][c]);
        }
    }
}

template <class T>
double sum_of_squares(const T* values, i64 count) {
    double partial[16] = {};
    i64 i = 0;
    for (; i + 16 <= count; i += 16) {
        for (int l = 0; l < 16; ++l) partial[l] += static_cast<double>(values[i + l]) * values[i + l];
    }
    for (; i < count; ++i) partial[0] += static_cast<double>(values[i]) * values[i];
    double total = 0;
    for (double part : partial) total += part;
    return total;
}

template <class T, bool add>
void multiply_packed(bool diagonal, i64 rows, i64 cols, i64 samples, const T* packed_rows,
                     const T* packed_cols, T* sums) {
    constexpr i64 panel = Tile<T>::panel;
    for (i64 c = 0; c < cols; c += panel) {
        for (i64 r = diagonal ? c : 0; r < rows; r += Tile<T>::rows) {
            const T* a = packed_rows + r / panel * panel * samples + r % panel;
            tile_product<T, add>(samples, a, packed_cols + c * samples, sums + r * cols + c, cols);
        }
    }
}

template <class Source, class T>
double block_of(const CovarianceBlock& block) {
    const bool diagonal = block.first_row == block.first_col;
    const i64 rows = round_up(block.rows, Tile<T>::rows);
    const i64 cols = round_up(block.cols, Tile<T>::panel);
    T* packed_rows = static_cast<T*>(block.packed_rows);
    T* packed_cols = diagonal ? packed_rows : static_cast<T*>(block.packed_cols);
    T* sums = static_cast<T*>(block.sums);
    double squares = 0;
    for (i64 k = block.first_sample; k < block.last_sample; k += chunk_samples) {
        const i64 samples = smaller(chunk_samples, block.last_sample - k);
        pack<Source, T>(block, block.first_row, block.rows, k, samples, packed_rows);
        if (diagonal) {
            squares += sum_of_squares(packed_rows, cols * samples);
        } else {
            pack<Source, T>(block, block.first_col, block.cols, k, samples, packed_cols);
        }
        if (k == block.first_sample && !block.add) {
            multiply_packed<T, false>(diagonal, rows, cols, samples, packed_rows, packed_cols, sums);
        } else {
            multiply_packed<T, true>(diagonal, rows, cols, samples, packed_rows, packed_cols, sums);
        }
    }
    return squares;
}

template <class T>
double covariance_block(const CovarianceBlock& block) {
    switch (block.x.dtype) {
        case Dtype::f64:
            return block_of<double, T>(block);
        case Dtype::bf16:
            return block_of<bf16_bits, T>(block);
        case Dtype::f16:
            return block_of<f16_bits, T>(block);
        default:
            return block_of<float, T>(block);
    }
}

constexpr CovarianceKernels covariance_kernels{
    row_means,          covariance_block<float>, covariance_block<double>,
    Tile<float>::panel, Tile<double>::panel,     chunk_samples};

}  // namespace slimfast::SLIMFAST_ISA
