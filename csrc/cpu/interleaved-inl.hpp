// Many small matrices of one size at a time, one in each lane: no sum across a vector, no vector half full.
#pragma once

#include "kernels.hpp"
#include "scaling-inl.hpp"
#include "sturm-inl.hpp"

namespace slimfast::SLIMFAST_ISA {

// The largest matrices that are solved so: their triangles stay in L1 together.
constexpr i64 kInterleavedRows = 32;

// Entry (i, j <= i) of the interleaved lower triangles.
template <class T>
SLIMFAST_INLINE T* entry(T* a, i64 i, i64 j) {
    return a + (triangle_size(i) + j) * kLanes<T>;
}

SLIMFAST_INLINE Vec<float> square_roots(Vec<float> x) {
    for (int l = 0; l < kLanes<float>; ++l) x[l] = square_root(x[l]);
    return x;
}
SLIMFAST_INLINE Vec<double> square_roots(Vec<double> x) {
    for (int l = 0; l < kLanes<double>; ++l) x[l] = square_root(x[l]);
    return x;
}

// Diagonals d (m) and off-diagonals e (m - 1) of tridiagonal matrices similar to the triangles in a, which
// are overwritten; all interleaved. `work` holds 2 m vectors. As in tridiagonalise, rows go from the last one
// up.
template <class T>
void tridiagonalise_interleaved(T* a, i64 m, T* d, T* e, T* work) {
    constexpr i64 v = kLanes<T>;
    T* u = work;
    T* q = work + m * v;
    for (i64 k = m - 1; k > 0; --k) {
        const T* row = entry(a, k, 0);
        store(d + k * v, load(row + k * v));
        const Vec<T> last = load(row + (k - 1) * v);
        if (k == 1) {
            store(e, last);
            break;
        }
        Vec<T> total{};
        for (i64 j = 0; j < k; ++j) total += load(row + j * v) * load(row + j * v);
        const Mask<T> some = total >= Float<T>::kNegligibleSquare;
        const Vec<T> norm = square_roots(some ? total : splat(T{1}));
        const Vec<T> beta = last > 0 ? -norm : norm;
        const Vec<T> scale = some ? T{1} / square_roots(beta * (beta - last)) : Vec<T>{};
        store(e + (k - 1) * v, some ? beta : last);
        for (i64 j = 0; j < k; ++j) {
            store(u + j * v, load(row + j * v) * scale);
            store(q + j * v, Vec<T>{});
        }
        store(u + (k - 1) * v, (last - beta) * scale);
        Vec<T> half{};
        for (i64 i = 0; i < k; ++i) {
            const T* entries = entry(a, i, 0);
            const Vec<T> ui = load(u + i * v);
            Vec<T> sum = load(entries + i * v) * ui;
            for (i64 j = 0; j < i; ++j) {
                const Vec<T> value = load(entries + j * v);
                sum += value * load(u + j * v);
                store(q + j * v, load(q + j * v) + value * ui);
            }
            store(q + i * v, sum);
        }
        for (i64 i = 0; i < k; ++i) half += load(q + i * v) * load(u + i * v);
        half *= T(0.5);
        for (i64 i = 0; i < k; ++i) store(q + i * v, load(q + i * v) - half * load(u + i * v));
        for (i64 i = 0; i < k; ++i) {
            T* entries = entry(a, i, 0);
            const Vec<T> ui = load(u + i * v), qi = load(q + i * v);
            for (i64 j = 0; j <= i; ++j) {
                store(entries + j * v, load(entries + j * v) - ui * load(q + j * v) - qi * load(u + j * v));
            }
        }
    }
    store(d, load(a));
}

// Elements of scratch for m rows.
template <class T>
constexpr i64 interleaved_elements(i64 m) {
    return kLanes<T> * (triangle_size(m) + 4 * m + 16 * m);
}

template <class T>
SLIMFAST_INLINE Vec<T> magnitude(Vec<T> value) {
    return value < 0 ? -value : value;
}

// What the search for the eigenvalues of interleaved matrices works with; all arrays hold m vectors.
template <class T>
struct InterleavedSearch {
    SturmPoints<T> points;
    Brackets<T> brackets;
    // How many eigenvalues lie below a and below b.
    T *a_count, *b_count;
};

template <class T>
SLIMFAST_INLINE InterleavedSearch<T> interleaved_search(T* x, i64 m, T* work) {
    T* arrays[15];
    for (int i = 0; i < 15; ++i) arrays[i] = work + i * m * kLanes<T>;
    return {{x, arrays[0], arrays[1], arrays[2]},
            {arrays[3], arrays[4], arrays[5], arrays[6], arrays[7], arrays[8], arrays[9], arrays[10],
             arrays[11], arrays[12]},
            arrays[13],
            arrays[14]};
}

// Between which numbers all eigenvalues of each matrix lie (Gershgorin), and the larger magnitude of the two.
template <class T>
struct SpectrumBounds {
    Vec<T> lowest, highest, norm;
};

template <class T>
SLIMFAST_INLINE SpectrumBounds<T> interleaved_bounds(const T* d, const T* e, i64 m) {
    constexpr i64 v = kLanes<T>;
    Vec<T> lowest = load(d), highest = lowest;
    for (i64 k = 0; k < m; ++k) {
        const Vec<T> before = k > 0 ? magnitude<T>(load(e + (k - 1) * v)) : Vec<T>{};
        const Vec<T> after = k + 1 < m ? magnitude<T>(load(e + k * v)) : Vec<T>{};
        const Vec<T> low = load(d + k * v) - before - after, high = load(d + k * v) + before + after;
        lowest = low < lowest ? low : lowest;
        highest = high > highest ? high : highest;
    }
    return {lowest, highest, -lowest > highest ? -lowest : highest};
}

// Every bracket holds all eigenvalues.
template <class T>
SLIMFAST_INLINE void start_interleaved(const InterleavedSearch<T>& search, i64 m,
                                       const SpectrumBounds<T>& bounds) {
    const Brackets<T>& brackets = search.brackets;
    const Vec<T> margin = 4 * Float<T>::kEpsilon * bounds.norm + T(1e-35);
    const Vec<T> unknown = splat(Float<T>::kNan);
    for (i64 at = 0; at < m * kLanes<T>; at += kLanes<T>) {
        store(search.points.x + at, Vec<T>{});
        store(brackets.a + at, bounds.lowest - margin);
        store(brackets.b + at, bounds.highest + margin);
        store(brackets.c + at, bounds.highest + margin);
        for (T* value : {brackets.a_mantissa, brackets.b_mantissa, brackets.c_mantissa})
            store(value + at, unknown);
        for (T* value : {brackets.a_exponent, brackets.b_exponent, brackets.c_exponent, search.a_count}) {
            store(value + at, Vec<T>{});
        }
        store(search.b_count + at, splat(static_cast<T>(m)));
        // A matrix of zeros has them for eigenvalues.
        store(brackets.state + at,
              bounds.norm > 0 ? splat(T(m > 1 ? kShared : kSearched)) : splat(T(kFound)));
    }
}

// The points of the i-th eigenvalue of every matrix into its brackets. No lane looks at what the others need,
// so that a matrix's eigenvalues do not depend on its neighbours.
template <class T>
SLIMFAST_INLINE void take_interleaved(const InterleavedSearch<T>& search, i64 i, bool counting,
                                      Vec<T> tolerance) {
    const Brackets<T>& brackets = search.brackets;
    const i64 at = i * kLanes<T>;
    const Vec<T> state = load(brackets.state + at);
    const Mask<T> shares = state == T(kShared);
    // An odd number of eigenvalues below x turns the sign.
    const Mask<T> odd = load(search.points.mantissa + at) < 0;
    Mask<T> above = i & 1 ? ~odd : odd;
    const Vec<T> count = counting ? load(search.points.count + at) : Vec<T>{};
    if (counting) above = shares ? (Mask<T>)(count > static_cast<T>(i)) : above;
    const Mask<T> same = take_points<T>(brackets, at, search.points, state != T(kFound), above);
    if (!counting) return;
    const Vec<T> below_b = same ? load(search.b_count + at) : load(search.a_count + at);
    store(search.a_count + at, count);
    store(search.b_count + at, below_b);
    // Several that no number parts are found together.
    const Vec<T> a = load(brackets.a + at), b = load(brackets.b + at), middle = a + (b - a) / 2;
    const Mask<T> close = shares & ((magnitude<T>(b - a) <= tolerance) | (middle == a) | (middle == b));
    const Mask<T> alone = shares & (magnitude<T>(below_b - count) == T{1});
    store(brackets.state + at, close ? splat(T(kFound)) : alone ? splat(T(kSearched)) : state);
    T* const x = search.points.x + at;
    store(x, close ? middle : load(x));
}

// x (m), ascending: the eigenvalues of the tridiagonal matrices (d, e), all interleaved; e becomes its
// squares. As in tridiagonal_eigenvalues, but an eigenvalue that shares its bracket halves it.
template <class T>
void interleaved_eigenvalues(const T* d, T* e, i64 m, T* x, T* work) {
    constexpr i64 v = kLanes<T>;
    const InterleavedSearch<T> search = interleaved_search(x, m, work);
    const SpectrumBounds<T> bounds = interleaved_bounds(d, e, m);
    const Vec<T> tolerance = Float<T>::kEpsilon / 8 * bounds.norm;
    const Vec<T> least_square = kLeastOffDiagonal<T> * bounds.norm * (kLeastOffDiagonal<T> * bounds.norm);
    for (i64 k = 0; k + 1 < m; ++k) {
        const Vec<T> square = load(e + k * v) * load(e + k * v);
        store(e + k * v, square > least_square ? square : least_square);
    }
    start_interleaved(search, m, bounds);
    for (int pass = 0; pass < kMostPasses<T>; ++pass) {
        for (i64 at = 0; at < m * v; at += v) {
            next_points(search.brackets, at, tolerance, pass >= kInterpolatedPasses<T>, x);
        }
        bool finished = true;
        for (i64 first = 0, last; first < m * v; first = last) {
            const State least = least_of(search.brackets, first);
            for (last = first + v; last < m * v && least_of(search.brackets, last) == least;) last += v;
            if (least == kFound) continue;
            finished = false;
            if (least == kShared) {
                sturm_sequences<T, true, true>(d, e, m, search.points, first, last);
            } else {
                sturm_sequences<T, false, true>(d, e, m, search.points, first, last);
            }
            for (i64 at = first; at < last; at += v) {
                take_interleaved<T>(search, at / v, least == kShared, tolerance);
            }
        }
        if (finished) break;
    }
    for (i64 at = v; at < m * v; at += v) {
        const Vec<T> before = load(x + at - v), value = load(x + at);
        store(x + at, value > before ? value : before);
    }
}

// Up to kLanes<T> matrices of the same m <= kInterleavedRows rows.
template <class T>
void eigvalsh_interleaved(const SymmetricMatrix* const* matrices, i64 count, T* a) {
    constexpr i64 v = kLanes<T>;
    const i64 m = matrices[0]->a.rows;
    const i64 entries = triangle_size(m);
    T* d = a + entries * v;
    T* e = d + m * v;
    T* x = e + m * v;
    T* work = x + m * v;
    for (i64 l = 0; l < v; ++l) {
        if (l >= count) {
            for (i64 i = 0; i < entries; ++i) a[i * v + l] = 0;
            continue;
        }
        const MatrixView& view = matrices[l]->a;
        T* to = a + l;
        for (i64 i = 0; i < m; ++i) {
            const T* from = static_cast<const T*>(view.data) + i * view.row_stride;
            for (i64 j = 0; j <= i; ++j, to += v) *to = from[j * view.col_stride];
        }
    }
    Mask<T> largest{};
    for (i64 i = 0; i < entries; ++i) {
        const Mask<T> bits = (Mask<T>)load(a + i * v) & Float<T>::kMagnitude;
        largest = bits > largest ? bits : largest;
    }
    Vec<T> scale{};
    i64 exponents[v];
    bool trivial[v];
    for (i64 l = 0; l < v; ++l) {
        exponents[l] = scaling_exponent<T>(largest[l]);
        trivial[l] = l >= count || is_trivial<T>(largest[l], static_cast<T*>(matrices[l]->values), m);
        scale[l] = trivial[l] ? T{0} : power_of_two<T>(-exponents[l]);
    }
    // A lane that is not finite becomes zeros.
    for (i64 i = 0; i < entries; ++i) {
        store(a + i * v, scale != T{0} ? load(a + i * v) * scale : Vec<T>{});
    }
    double traces[v] = {}, lost[v] = {};
    for (i64 i = 0; i < m; ++i) {
        for (i64 l = 0; l < v; ++l) add_exactly(entry(a, i, i)[l], traces[l], lost[l]);
    }
    tridiagonalise_interleaved(a, m, d, e, work);
    interleaved_eigenvalues(d, e, m, x, work);
    for (i64 l = 0; l < count; ++l) {
        if (trivial[l]) continue;
        T* values = static_cast<T*>(matrices[l]->values);
        for (i64 i = 0; i < m; ++i) values[i] = x[i * v + l];
        match_trace(values, m, traces[l], lost[l]);
        const T back = power_of_two<T>(exponents[l]);
        for (i64 i = 0; i < m; ++i) values[i] *= back;
    }
}

}  // namespace slimfast::SLIMFAST_ISA
