// Stage two of two: a band of kBand subdiagonals to a tridiagonal matrix, by chasing bulges down it.
//
// Sweep s takes the column s: a reflector on the rows below it leaves one subdiagonal entry and fills a block
// further down, whose first column the next reflector of the sweep clears, and so on to the end (Lang, "A
// parallel algorithm for reducing symmetric banded matrices to tridiagonal form", SIAM J. Sci. Comput. 14,
// 1993). Hop h of a sweep may run once the sweep before has done hop h + 1.
#pragma once

#include "band-inl.hpp"

namespace slimfast::SLIMFAST_ISA {

// A column of the band: the diagonal, 2 band - 1 entries below it, and zeros that a vector which begins above
// the diagonal reads. Element (i, j) is at j kBandStride + i - j, so that a block is a dense one whose
// columns are kBandStride - 1 apart.
constexpr i64 kBandStride = 2 * kBand + 16;

constexpr i64 band_elements(i64 m) { return (m + 3 * kBand) * kBandStride; }

// The reflector I - u u^T that maps x (kBand) onto (beta, 0, ..., 0): x becomes that. False where x is of
// that form already, to rounding.
template <class T>
SLIMFAST_INLINE bool first_reflector(T* x, Vec<T> (&u)[kBand / kLanes<T>]) {
    constexpr int vectors = kBand / kLanes<T>;
    const T head = x[0];
    for (int j = 0; j < vectors; ++j) u[j] = load(x + j * kLanes<T>);
    const Vec<T> zero{};
    Vec<T> kept = zero;
    u[0][0] = 0;
    Vec<T> squares = u[0] * u[0];
    for (int j = 1; j < vectors; ++j) squares += u[j] * u[j];
    const T tail = sum_of<T>(squares);
    for (int j = 1; j < vectors; ++j) store(x + j * kLanes<T>, zero);
    if (tail < Float<T>::kNegligibleSquare) {
        kept[0] = head;
        store(x, kept);
        for (int j = 0; j < vectors; ++j) u[j] = zero;
        return false;
    }
    const double norm = square_root(static_cast<double>(tail) + static_cast<double>(head) * head);
    const double beta = head > 0 ? -norm : norm;
    const T scale = static_cast<T>(1.0 / square_root(beta * (beta - head)));
    kept[0] = static_cast<T>(beta);
    store(x, kept);
    u[0][0] = static_cast<T>(head - beta);
    for (int j = 0; j < vectors; ++j) u[j] *= scale;
    return true;
}

// Lane l of the result is the sum over the lanes of rows[l].
template <class T>
SLIMFAST_INLINE Vec<T> sums_of(Vec<T> (&rows)[kLanes<T>]) {
    transpose<T>(rows);
    Vec<T> sum = rows[0];
    for (int l = 1; l < kLanes<T>; ++l) sum += rows[l];
    return sum;
}

// All bits set in the lanes above lane l.
template <class T>
SLIMFAST_INLINE Mask<T> lanes_above(int l) {
    Mask<T> above;
    for (int i = 0; i < kLanes<T>; ++i) above[i] = i > l ? -1 : 0;
    return above;
}

// a -= u q^T + q u^T for the lower triangle of a (kBand, kBand) symmetric block on the diagonal, where
// q = a u - (u^T a u) u / 2: the reflector I - u u^T from both sides.
template <class T>
SLIMFAST_INLINE void reflect_diagonal(T* a, const T* u) {
    constexpr int v = kLanes<T>, vectors = kBand / v;
    constexpr i64 stride = kBandStride - 1;
    alignas(64) T q[kBand];
    Vec<T> product[vectors], reflected[vectors];
    for (int j = 0; j < vectors; ++j) {
        product[j] = Vec<T>{};
        reflected[j] = load(u + j * v);
    }
#pragma GCC unroll 16
    for (int g = 0; g < vectors; ++g) {
        Vec<T> dots[v];
#pragma GCC unroll 16
        for (int l = 0; l < v; ++l) {
            const T* column = a + (g * v + l) * stride;
            const T factor = u[g * v + l];
            const Vec<T> corner = load(column + g * v);
            product[g] += corner * factor;
            Vec<T> dot = (Vec<T>)((Mask<T>)corner & lanes_above<T>(l)) * reflected[g];
            for (int j = g + 1; j < vectors; ++j) {
                const Vec<T> value = load(column + j * v);
                product[j] += value * factor;
                dot += value * reflected[j];
            }
            dots[l] = dot;
        }
        product[g] += sums_of<T>(dots);
    }
    Vec<T> weighted{};
    for (int j = 0; j < vectors; ++j) weighted += product[j] * reflected[j];
    const T half = sum_of<T>(weighted) / 2;
    for (int j = 0; j < vectors; ++j) {
        product[j] -= half * reflected[j];
        store(q + j * v, product[j]);
    }
#pragma GCC unroll 16
    for (int g = 0; g < vectors; ++g) {
#pragma GCC unroll 16
        for (int l = 0; l < v; ++l) {
            T* column = a + (g * v + l) * stride;
            const T uc = u[g * v + l], qc = q[g * v + l];
            // Entries above the diagonal are other entries' zeros and stay so.
            const Vec<T> change = reflected[g] * qc + product[g] * uc;
            store(column + g * v, load(column + g * v) - (Vec<T>)((Mask<T>)change & lanes_above<T>(l - 1)));
            for (int j = g + 1; j < vectors; ++j) {
                store(column + j * v, load(column + j * v) - reflected[j] * qc - product[j] * uc);
            }
        }
    }
}

// The block b (kBand, kBand) below: from the right the reflector u of its columns, then from the left the one
// that clears its first column, which replaces u. False where none is needed.
template <class T>
SLIMFAST_INLINE bool reflect_below(T* b, T* u) {
    constexpr i64 v = kLanes<T>, stride = kBandStride - 1;
    constexpr int vectors = kBand / v;
    // Two sums, so that one need not wait for the other.
    Vec<T> w[vectors], other[vectors];
    for (int j = 0; j < vectors; ++j) w[j] = other[j] = Vec<T>{};
    for (i64 c = 0; c < kBand; c += 2) {
        for (int j = 0; j < vectors; ++j) {
            w[j] += load(b + c * stride + j * v) * u[c];
            other[j] += load(b + (c + 1) * stride + j * v) * u[c + 1];
        }
    }
    for (int j = 0; j < vectors; ++j) {
        w[j] += other[j];
        store(b + j * v, load(b + j * v) - w[j] * u[0]);
    }
    Vec<T> next[vectors];
    const bool more = first_reflector(b, next);
    alignas(64) T z[kBand];
    Vec<T> both{};
    for (int j = 0; j < vectors; ++j) both += next[j] * w[j];
    const T overlap = sum_of<T>(both);
    for (i64 c = 0; c < kBand; c += v) {
        Vec<T> dots[v];
#pragma GCC unroll 16
        for (int l = 0; l < v; ++l) {
            Vec<T> dot{};
            for (int j = 0; j < vectors; ++j) dot += load(b + (c + l) * stride + j * v) * next[j];
            dots[l] = dot;
        }
        store(z + c, sums_of<T>(dots) - overlap * load(u + c));
    }
    for (i64 c = 1; c < kBand; ++c) {
        const T uc = u[c], zc = z[c];
        for (int j = 0; j < vectors; ++j) {
            T* at = b + c * stride + j * v;
            store(at, load(at) - w[j] * uc - next[j] * zc);
        }
    }
    for (int j = 0; j < vectors; ++j) store(u + j * v, next[j]);
    return more;
}

// Sweeps that one thread runs as a group, two hops behind each other, so that what they share stays in cache.
constexpr i64 kSweepsPerGroup = 8;

// One sweep's place on its way down.
template <class T>
struct Sweep {
    alignas(64) T u[kBand];
    i64 column, row;
    bool active;
};

template <class T>
void hop(T* a, i64 m, Sweep<T>& sweep) {
    if (!sweep.active) return;
    if (sweep.row == sweep.column + 1) {
        Vec<T> u[kBand / kLanes<T>];
        sweep.active = first_reflector(a + sweep.column * kBandStride + 1, u);
        if (!sweep.active) return;
        for (int j = 0; j < kBand / kLanes<T>; ++j) store(sweep.u + j * kLanes<T>, u[j]);
    }
    T* diagonal = a + sweep.row * kBandStride;
    reflect_diagonal(diagonal, sweep.u);
    sweep.active = reflect_below(diagonal + kBand, sweep.u);
    sweep.row += kBand;
    sweep.active = sweep.active && sweep.row < m - 1;
}

// Reduces the band a (m columns, band_elements) to its diagonal and first subdiagonal. Called by every thread
// of the team; `progress` holds a zero for each of the groups of sweeps.
template <class T>
void chase_bulges(T* a, i64 m, i64* progress, const ThreadTeam& team) {
    constexpr i64 done = i64{1} << 62;
    const i64 sweeps = larger<i64>(m - 2, 0);
    const i64 groups = ceil_div(sweeps, kSweepsPerGroup);
    for (i64 group = team.rank; group < groups; group += team.size) {
        Sweep<T> sweep[kSweepsPerGroup];
        const i64 first = group * kSweepsPerGroup;
        const i64 count = smaller(kSweepsPerGroup, sweeps - first);
        for (i64 s = 0; s < count; ++s) {
            sweep[s].column = first + s;
            sweep[s].row = first + s + 1;
            sweep[s].active = true;
        }
        bool active = true;
        for (i64 step = 0; active; ++step) {
            // The sweep before this group's first one has to be a hop ahead.
            if (group > 0) {
                while (__atomic_load_n(progress + group - 1, __ATOMIC_ACQUIRE) < step + 2) team.relax();
            }
            active = false;
            for (i64 s = 0; s < count; ++s) {
                if (step >= 2 * s) hop(a, m, sweep[s]);
                active = active || sweep[s].active;
            }
            const i64 last = step - 2 * (count - 1) + 1;
            __atomic_store_n(progress + group, active ? larger<i64>(last, 0) : done, __ATOMIC_RELEASE);
        }
    }
}

}  // namespace slimfast::SLIMFAST_ISA
