// Blocked Cholesky of a damped matrix, and its right-hand sides as more rows of it.
//
// The factor L lies in panels of kPanel rows: panel p holds columns 0 .. (p + 1) kPanel - 1, column after
// column, kPanel rows each, which is how the register tiles of a product read both of their operands. Forward
// substitution of B is what a panel below the matrix goes through: Y^T L^T = B^T.
#pragma once

#include "packing-inl.hpp"

namespace slimfast::SLIMFAST_ISA {

constexpr i64 kSolvePanel = Tile<double>::kPanel;
constexpr int kSolveRows = Tile<double>::kRows;
// Columns that are finished together, and how many earlier ones are taken out of them at a time: so much of
// the factor stays in L2, so much of a panel in L1.
constexpr i64 kSolveBlock = 96;
// Panels of right-hand sides that are solved together.
constexpr i64 kSolveSides = 48;

struct Factor {
    double* panels;
    double* inverse;
    // Rows in whole panels; those beyond the matrix are the identity's.
    i64 rows;

    double* panel(i64 p) const { return panels + kSolvePanel * kSolvePanel * triangle_size(p); }
};

// to[r] -= sum over k of a[k * kStep + r * kRow] * b[k], rows of kSolvePanel numbers; the sums are in `tile`.
template <int kStep, int kRow>
SLIMFAST_INLINE void add_to_tile(i64 samples, const double* a, const double* b,
                                 Vec<double> (&tile)[kSolveRows][Tile<double>::kVectors]) {
    for (i64 k = 0; k < samples; ++k) {
        Vec<double> right[Tile<double>::kVectors];
        for (int c = 0; c < Tile<double>::kVectors; ++c) right[c] = load(b + c * kLanes<double>);
        for (int r = 0; r < kSolveRows; ++r) {
            const Vec<double> left = splat(a[r * kRow]);
            for (int c = 0; c < Tile<double>::kVectors; ++c) tile[r][c] += left * right[c];
        }
        a += kStep;
        b += kSolvePanel;
    }
}

SLIMFAST_INLINE void subtract_tile(const Vec<double> (&tile)[kSolveRows][Tile<double>::kVectors],
                                   double* to) {
    for (int r = 0; r < kSolveRows; ++r) {
        for (int c = 0; c < Tile<double>::kVectors; ++c) {
            double* at = to + r * kSolvePanel + c * kLanes<double>;
            store(at, load(at) - tile[r][c]);
        }
    }
}

// Takes columns first..last - 1 of the factor out of columns begin..begin + kSolveRows - 1 of a panel `t`.
SLIMFAST_INLINE void take_out(const Factor& l, i64 first, i64 last, i64 begin, double* t) {
    Vec<double> tile[kSolveRows][Tile<double>::kVectors] = {};
    const double* a = l.panel(begin / kSolvePanel) + first * kSolvePanel + begin % kSolvePanel;
    add_to_tile<kSolvePanel, 1>(last - first, a, t + first * kSolvePanel, tile);
    subtract_tile(tile, t + begin * kSolvePanel);
}

// Columns begin..end - 1 of a panel less all columns before `begin`.
void take_out_earlier(const Factor& l, i64 begin, i64 end, double* t) {
    for (i64 k = 0; k < begin; k += kSolveBlock) {
        const i64 last = smaller(k + kSolveBlock, begin);
        for (i64 j = begin; j < end; j += kSolveRows) take_out(l, k, last, j, t);
    }
}

SLIMFAST_INLINE void scale_row(double* row, double by) {
    for (i64 c = 0; c < kSolvePanel; c += kLanes<double>) store(row + c, load(row + c) * by);
}

SLIMFAST_INLINE void subtract_row(double* row, const double* other, double by) {
    for (i64 c = 0; c < kSolvePanel; c += kLanes<double>) {
        store(row + c, load(row + c) - load(other + c) * splat(by));
    }
}

// Columns begin..end - 1 of a panel, from which all before `begin` are taken out, solved against the rows of
// the factor of the same numbers.
void finish_columns(const Factor& l, i64 begin, i64 end, double* t) {
    for (i64 j = begin; j < end; j += kSolveRows) {
        take_out(l, begin, j, j, t);
        const double* own = l.panel(j / kSolvePanel) + j % kSolvePanel;
        for (i64 r = j; r < j + kSolveRows; ++r) {
            for (i64 s = j; s < r; ++s) {
                subtract_row(t + r * kSolvePanel, t + s * kSolvePanel, own[s * kSolvePanel + r - j]);
            }
            scale_row(t + r * kSolvePanel, l.inverse[r]);
        }
    }
}

// The square on the diagonal of panel `p`; returns 0, or the order of the minor that is not positive.
i64 factor_square(const Factor& l, i64 p) {
    double* t = l.panel(p) + p * kSolvePanel * kSolvePanel;
    for (i64 c = 0; c < kSolvePanel; ++c) {
        double* column = t + c * kSolvePanel;
        const double pivot = column[c];
        if (!(pivot > 0)) return p * kSolvePanel + c + 1;
        const double inverse = 1 / square_root(pivot);
        l.inverse[p * kSolvePanel + c] = inverse;
        scale_row(column, inverse);
        for (i64 next = c + 1; next < kSolvePanel; ++next) {
            subtract_row(t + next * kSolvePanel, column, column[next]);
        }
    }
    return 0;
}

template <class Source>
void load_panel(const MatrixView& a, double damping, i64 p, double* t) {
    const Source* data = static_cast<const Source*>(a.data);
    const i64 first = p * kSolvePanel;
    for (i64 i = 0; i < (first + kSolvePanel) * kSolvePanel; ++i) t[i] = 0;
    for (i64 r = 0; r < kSolvePanel; ++r) {
        const i64 row = first + r;
        double& diagonal = t[row * kSolvePanel + r];
        if (row >= a.rows) {
            diagonal = 1;
            continue;
        }
        const Source* from = data + row * a.row_stride;
        for (i64 c = 0; c <= row; ++c) t[c * kSolvePanel + r] = from[c * a.col_stride];
        diagonal += damping;
    }
}

// Factors the damped matrix; returns 0, or the order of the minor that is not positive.
i64 factor_matrix(const Factor& l, const DampedSystem& system) {
    const i64 panels = l.rows / kSolvePanel, together = kSolveBlock / kSolvePanel;
    for (i64 p = 0; p < panels; ++p) {
        system.a.dtype == Dtype::kFloat64 ? load_panel<double>(system.a, system.damping, p, l.panel(p))
                                          : load_panel<float>(system.a, system.damping, p, l.panel(p));
    }
    for (i64 first = 0; first < panels; first += together) {
        const i64 last = smaller(first + together, panels), begin = first * kSolvePanel;
        for (i64 p = first; p < panels; ++p) {
            double* t = l.panel(p);
            const i64 end = smaller(p + 1, last) * kSolvePanel;
            take_out_earlier(l, begin, end, t);
            if (p >= last) {
                finish_columns(l, begin, end, t);
                continue;
            }
            finish_columns(l, begin, p * kSolvePanel, t);
            for (i64 j = p * kSolvePanel; j < end; j += kSolveRows) take_out(l, begin, p * kSolvePanel, j, t);
            const i64 failure = factor_square(l, p);
            if (failure) return failure;
        }
    }
    return 0;
}

// Takes rows first..last - 1 of a solution `t` out of its rows j..j + kSolveRows - 1, which come before them.
SLIMFAST_INLINE void take_out_later(const Factor& l, i64 first, i64 last, i64 j, double* t) {
    Vec<double> tile[kSolveRows][Tile<double>::kVectors] = {};
    for (i64 i = first; i < last;) {
        const i64 p = i / kSolvePanel, end = smaller((p + 1) * kSolvePanel, last);
        const double* a = l.panel(p) + j * kSolvePanel + i % kSolvePanel;
        add_to_tile<1, kSolvePanel>(end - i, a, t + i * kSolvePanel, tile);
        i = end;
    }
    subtract_tile(tile, t + j * kSolvePanel);
}

// Backward substitution of a panel of right-hand sides.
void solve_backward(const Factor& l, double* t) {
    for (i64 begin = (l.rows - 1) / kSolveBlock * kSolveBlock; begin >= 0; begin -= kSolveBlock) {
        const i64 end = smaller(begin + kSolveBlock, l.rows);
        for (i64 k = end; k < l.rows; k += kSolveBlock) {
            const i64 last = smaller(k + kSolveBlock, l.rows);
            for (i64 j = begin; j < end; j += kSolveRows) take_out_later(l, k, last, j, t);
        }
        for (i64 j = end - kSolveRows; j >= begin; j -= kSolveRows) {
            take_out_later(l, j + kSolveRows, end, j, t);
            const double* own = l.panel(j / kSolvePanel) + j % kSolvePanel;
            for (i64 r = j + kSolveRows - 1; r >= j; --r) {
                for (i64 s = r + 1; s < j + kSolveRows; ++s) {
                    subtract_row(t + r * kSolvePanel, t + s * kSolvePanel, own[r * kSolvePanel + s - j]);
                }
                scale_row(t + r * kSolvePanel, l.inverse[r]);
            }
        }
    }
}

template <class T>
void load_sides(const MatrixView& b, i64 first, i64 rows, double* t) {
    const T* data = static_cast<const T*>(b.data) + first * b.col_stride;
    const i64 here = smaller(kSolvePanel, b.cols - first);
    for (i64 i = 0; i < rows; ++i) {
        for (i64 c = 0; c < kSolvePanel; ++c) {
            t[i * kSolvePanel + c] =
                i < b.rows && c < here ? data[i * b.row_stride + c * b.col_stride] : T{0};
        }
    }
}

template <class T>
void store_sides(const DampedSystem& system, i64 first, const double* t) {
    const i64 cols = system.b.cols, here = smaller(kSolvePanel, cols - first);
    T* out = static_cast<T*>(system.solution) + first;
    for (i64 i = 0; i < system.b.rows; ++i) {
        for (i64 c = 0; c < here; ++c) out[i * cols + c] = static_cast<T>(t[i * kSolvePanel + c]);
    }
}

// The right-hand sides, a few panels at a time, so that what is read of the factor serves all of them.
template <class T>
void solve_sides(const Factor& l, const DampedSystem& system, double* work) {
    const i64 cols = system.b.cols, size = l.rows * kSolvePanel;
    for (i64 first = 0; first < cols; first += kSolveSides * kSolvePanel) {
        const i64 panels = smaller(kSolveSides, ceil_div(cols - first, kSolvePanel));
        for (i64 p = 0; p < panels; ++p) {
            load_sides<T>(system.b, first + p * kSolvePanel, l.rows, work + p * size);
        }
        for (i64 begin = 0; begin < l.rows; begin += kSolveBlock) {
            const i64 end = smaller(begin + kSolveBlock, l.rows);
            for (i64 p = 0; p < panels; ++p) {
                take_out_earlier(l, begin, end, work + p * size);
                finish_columns(l, begin, end, work + p * size);
            }
        }
        for (i64 p = 0; p < panels; ++p) {
            solve_backward(l, work + p * size);
            store_sides<T>(system, first + p * kSolvePanel, work + p * size);
        }
    }
}

i64 solve_scratch_bytes(i64 m, i64 k) {
    const i64 rows = round_up(m, kSolvePanel);
    const i64 factor = kSolvePanel * kSolvePanel * triangle_size(rows / kSolvePanel);
    const i64 sides = smaller(kSolveSides, ceil_div(k, kSolvePanel)) * kSolvePanel;
    return 8 * (factor + rows + rows * sides);
}

template <class T>
void solve_system_of(DampedSystem& system, double* memory) {
    const i64 rows = round_up(system.a.rows, kSolvePanel);
    const i64 elements = kSolvePanel * kSolvePanel * triangle_size(rows / kSolvePanel);
    const Factor l{memory, memory + elements, rows};
    system.failure = factor_matrix(l, system);
    if (system.failure == 0) return solve_sides<T>(l, system, memory + elements + rows);
    T* out = static_cast<T*>(system.solution);
    for (i64 i = 0; i < system.b.rows * system.b.cols; ++i) out[i] = Float<T>::kNan;
}

void solve_system(DampedSystem& system, void* scratch) {
    double* memory = static_cast<double*>(scratch);
    system.b.dtype == Dtype::kFloat64 ? solve_system_of<double>(system, memory)
                                      : solve_system_of<float>(system, memory);
}

constexpr SolveKernels kSolveKernels{solve_scratch_bytes, solve_system};

}  // namespace slimfast::SLIMFAST_ISA
