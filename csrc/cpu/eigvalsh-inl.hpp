// Eigenvalues of one symmetric matrix: scaled, reduced to a tridiagonal one, counted.
#pragma once

#include "chase-inl.hpp"
#include "interleaved-inl.hpp"
#include "kernels.hpp"
#include "scaling-inl.hpp"
#include "sturm-inl.hpp"
#include "tridiagonal-inl.hpp"

namespace slimfast::SLIMFAST_ISA {

// The largest magnitude of x (n) as its bits, which order like the magnitudes, with those of Inf and NaN on
// top.
template <class T>
SLIMFAST_INLINE BitsOf<T> largest_bits(const T* x, i64 n) {
    BitsOf<T> largest = 0;
    for (i64 j = 0; j < n; ++j) {
        BitsOf<T> bits;
        std::memcpy(&bits, x + j, sizeof bits);
        largest = larger<BitsOf<T>>(largest, bits & Float<T>::kMagnitude);
    }
    return largest;
}

// Copies the lower triangle of `view` into packed form; returns its largest magnitude's bits.
template <class T>
BitsOf<T> pack_lower(const MatrixView& view, T* a) {
    constexpr i64 v = kLanes<T>;
    const T* data = static_cast<const T*>(view.data);
    const i64 m = view.rows;
    BitsOf<T> largest = 0;
    for (i64 start = 0; start < m; start += v) {
        const i64 stride = start + v;
        T* tile = packed_row(a, start);
        for (i64 r = 0; r < v; ++r) {
            T* row = tile + r * stride;
            const i64 i = start + r;
            const i64 filled = i < m ? i + 1 : 0;
            const T* from = data + i * view.row_stride;
            if (view.col_stride == 1) {
                for (i64 j = 0; j < filled; ++j) row[j] = from[j];
            } else {
                for (i64 j = 0; j < filled; ++j) row[j] = from[j * view.col_stride];
            }
            for (i64 j = filled; j < stride; ++j) row[j] = 0;
            largest = larger<BitsOf<T>>(largest, largest_bits(row, filled));
        }
        for (i64 r = 0; r < v; ++r) {
            for (i64 c = r + 1; c < v; ++c) tile[r * stride + start + c] = tile[c * stride + start + r];
        }
    }
    return largest;
}

template <class T>
constexpr i64 eigvalsh_elements(i64 m) {
    return packed_elements<T>(m) + 2 * m + larger(4 * round_up(m, kLanes<T>), sturm_elements<T>(m));
}

// The eigenvalues of the tridiagonal (d, e), whose trace is known better than d is, times 2^exponent.
template <class T>
void finish(const T* d, const T* e, i64 m, double trace, double trace_lost, i64 exponent, T* values,
            T* work) {
    tridiagonal_eigenvalues(d, e, m, values, work);
    match_trace(values, m, trace, trace_lost);
    const T back = power_of_two<T>(exponent);
    for (i64 i = 0; i < m; ++i) values[i] *= back;
}

template <class T>
void eigvalsh_one_stage(const SymmetricMatrix& matrix, T* a) {
    const i64 m = matrix.a.rows;
    T* values = static_cast<T*>(matrix.values);
    const auto largest = pack_lower(matrix.a, a);
    if (is_trivial<T>(largest, values, m)) return;
    const i64 exponent = scaling_exponent<T>(largest);
    const T scale = power_of_two<T>(-exponent);
    const i64 elements = packed_elements<T>(m);
    for (i64 i = 0; i < elements; ++i) a[i] *= scale;
    T* d = a + elements;
    T* e = d + m;
    T* work = e + m;
    double trace = 0, trace_lost = 0;
    for (i64 i = 0; i < m; ++i) add_exactly(packed_row(a, i)[i], trace, trace_lost);
    tridiagonalise(a, m, d, e, work);
    finish(d, e, m, trace, trace_lost, exponent, values, work);
}

// Copies the lower triangle of columns panel band.. of `view` into a panel; returns its largest magnitude's
// bits.
template <class T>
BitsOf<T> pack_panel(const MatrixView& view, i64 n, i64 panel, T* a) {
    const T* data = static_cast<const T*>(view.data);
    const i64 first = panel * kBand, m = view.rows;
    BitsOf<T> largest = 0;
    T* block = panel_row(a, n, panel, first);
    for (i64 i = first; i < n; ++i) {
        T* row = block + (i - first) * kBand;
        const i64 filled = i < m ? smaller<i64>(i - first + 1, kBand) : 0;
        const T* from = data + i * view.row_stride + first * view.col_stride;
        for (i64 j = 0; j < filled; ++j) row[j] = from[j * view.col_stride];
        for (i64 j = filled; j < kBand; ++j) row[j] = 0;
        largest = larger<BitsOf<T>>(largest, largest_bits(row, filled));
    }
    for (i64 r = 0; r < kBand; ++r) {
        for (i64 c = r + 1; c < kBand; ++c) block[r * kBand + c] = block[c * kBand + r];
    }
    return largest;
}

// A band of m columns from the blocks that reduce_to_band leaves.
template <class T>
void gather_band(const BandWork<T>& work, i64 n, i64 m, T* a) {
    for (i64 i = 0; i < band_elements(m); ++i) a[i] = 0;
    for (i64 j = 0; j < m; ++j) {
        const i64 panel = j / kBand, c = j % kBand;
        const T* block = panel_row(work.a, n, panel, panel * kBand);
        const T* below = work.r + panel * kBand * kBand;
        T* column = a + j * kBandStride;
        for (i64 i = c; i < kBand && panel * kBand + i < m; ++i) column[i - c] = block[i * kBand + c];
        for (i64 i = 0; i <= c && (panel + 1) * kBand + i < m; ++i)
            column[kBand + i - c] = below[i * kBand + c];
    }
}

template <class T>
constexpr i64 two_stage_elements(i64 m) {
    const i64 n = round_up(m, kBand);
    return band_work_elements<T>(n) + band_elements(m) + 2 * m + sturm_elements<T>(m);
}

// Flags of the team: one for each panel, then one for each group of sweeps.
constexpr i64 two_stage_flags(i64 m) {
    return round_up(larger(ceil_div(m, kBand), ceil_div(m, kSweepsPerGroup)), 8);
}

template <class T>
void eigvalsh_two_stage(const SymmetricMatrix& matrix, void* scratch, const ThreadTeam& team) {
    const i64 m = matrix.a.rows, n = round_up(m, kBand), panels = n / kBand;
    T* values = static_cast<T*>(matrix.values);
    i64* flags = static_cast<i64*>(scratch);
    T* memory = reinterpret_cast<T*>(flags + two_stage_flags(m));
    const BandWork<T> work = band_work(memory, n);
    T* a = memory + band_work_elements<T>(n);
    T* d = a + band_elements(m);
    T* e = d + m;
    for (i64 panel = team.rank; panel < panels; panel += team.size) {
        flags[panel] = pack_panel(matrix.a, n, panel, work.a);
    }
    team.wait();
    BitsOf<T> largest = 0;
    for (i64 panel = 0; panel < panels; ++panel) {
        largest = larger<BitsOf<T>>(largest, static_cast<BitsOf<T>>(flags[panel]));
    }
    if (is_trivial<T>(largest, values, 0)) {
        if (team.rank == 0) is_trivial<T>(largest, values, m);
        return;
    }
    const i64 exponent = scaling_exponent<T>(largest);
    const T scale = power_of_two<T>(-exponent);
    for (i64 panel = team.rank; panel < panels; panel += team.size) {
        T* block = panel_row(work.a, n, panel, panel * kBand);
        for (i64 i = 0; i < (n - panel * kBand) * kBand; ++i) block[i] *= scale;
    }
    team.wait();
    double trace = 0, trace_lost = 0;
    if (team.rank == 0) {
        for (i64 i = 0; i < m; ++i) {
            add_exactly(panel_row(work.a, n, i / kBand, i)[i % kBand], trace, trace_lost);
        }
        for (i64 i = 0; i < two_stage_flags(m); ++i) flags[i] = 0;
    }
    team.wait();
    reduce_to_band(work, n, team);
    if (team.rank == 0) gather_band(work, n, m, a);
    team.wait();
    chase_bulges(a, m, flags, team);
    team.wait();
    if (team.rank != 0) return;
    for (i64 i = 0; i < m; ++i) {
        d[i] = a[i * kBandStride];
        if (i + 1 < m) e[i] = a[i * kBandStride + 1];
    }
    finish(d, e, m, trace, trace_lost, exponent, values, e + m);
}

// Rows from which two stages are faster.
template <class T>
constexpr i64 kTwoStageRows = sizeof(T) == 4 ? 1280 : 1024;

bool shareable(Dtype dtype, i64 m) {
    return m >= (dtype == Dtype::kFloat64 ? kTwoStageRows<double> : kTwoStageRows<float>);
}

template <class T>
void solve_as(const SymmetricMatrix& matrix, void* scratch, const ThreadTeam& team) {
    if (shareable(matrix.a.dtype, matrix.a.rows)) {
        eigvalsh_two_stage<T>(matrix, scratch, team);
    } else if (team.rank == 0) {
        eigvalsh_one_stage(matrix, static_cast<T*>(scratch));
    }
}

void solve(const SymmetricMatrix& matrix, void* scratch, const ThreadTeam& team) {
    if (matrix.a.dtype == Dtype::kFloat64) {
        solve_as<double>(matrix, scratch, team);
    } else {
        solve_as<float>(matrix, scratch, team);
    }
}

i64 many(Dtype dtype, i64 m) {
    if (m > kInterleavedRows) return 0;
    return dtype == Dtype::kFloat64 ? kLanes<double> : kLanes<float>;
}

void solve_many(const SymmetricMatrix* const* matrices, i64 count, void* scratch) {
    if (matrices[0]->a.dtype == Dtype::kFloat64) {
        eigvalsh_interleaved(matrices, count, static_cast<double*>(scratch));
    } else {
        eigvalsh_interleaved(matrices, count, static_cast<float*>(scratch));
    }
}

template <class T>
i64 bytes_for(i64 m, bool two_stage) {
    if (m <= kInterleavedRows) return sizeof(T) * interleaved_elements<T>(m);
    if (!two_stage) return sizeof(T) * eigvalsh_elements<T>(m);
    return sizeof(i64) * two_stage_flags(m) + sizeof(T) * two_stage_elements<T>(m);
}

i64 scratch_bytes(Dtype dtype, i64 m) {
    const bool two_stage = shareable(dtype, m);
    return dtype == Dtype::kFloat64 ? bytes_for<double>(m, two_stage) : bytes_for<float>(m, two_stage);
}

constexpr EigvalshKernels kEigvalshKernels{scratch_bytes, shareable, many, solve_many, solve};

}  // namespace slimfast::SLIMFAST_ISA
