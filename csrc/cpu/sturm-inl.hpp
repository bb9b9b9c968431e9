// All eigenvalues of a symmetric tridiagonal matrix by counting: Sturm sequences at many shifts at once.
#pragma once

#include "simd.hpp"

namespace slimfast::SLIMFAST_ISA {

template <class T>
constexpr T epsilon = sizeof(T) == 4 ? T(0x1p-23) : T(0x1p-52);

// How many eigenvalues lie below each of `vectors` x lanes shifts. `e2` are squared off-diagonals, none of
// them zero: then a zero pivot gives an infinite one and the count stays right (Demmel, Dhillon, Ren, "On the
// correctness of some bisection-like parallel eigenvalue algorithms", ETNA 3, 1995).
template <class T, int vectors>
SLIMFAST_INLINE void count_below(const T* d, const T* e2, i64 m, const T* shifts, T* counts) {
    constexpr int sign_bit = 8 * sizeof(T) - 1;
    Vec<T> x[vectors], pivot[vectors];
    Mask<T> negative[vectors];
    for (int i = 0; i < vectors; ++i) {
        x[i] = load(shifts + i * lanes<T>);
        pivot[i] = d[0] - x[i];
        negative[i] = (Mask<T>)pivot[i] >> sign_bit;
    }
    for (i64 k = 1; k < m; ++k) {
        const Vec<T> dk = splat(d[k]), ek = splat(e2[k - 1]);
        for (int i = 0; i < vectors; ++i) {
            pivot[i] = (dk - x[i]) - ek / pivot[i];
            negative[i] += (Mask<T>)pivot[i] >> sign_bit;
        }
    }
    for (int i = 0; i < vectors; ++i)
        store(counts + i * lanes<T>, __builtin_convertvector(-negative[i], Vec<T>));
}

// counts[i] for `total` shifts, a multiple of lanes.
template <class T>
void count_all(const T* d, const T* e2, i64 m, const T* shifts, i64 total, T* counts) {
    constexpr i64 v = lanes<T>;
    i64 i = 0;
    for (; i + 4 * v <= total; i += 4 * v) count_below<T, 4>(d, e2, m, shifts + i, counts + i);
    if (i + 2 * v <= total) {
        count_below<T, 2>(d, e2, m, shifts + i, counts + i);
        i += 2 * v;
    }
    if (i < total) count_below<T, 1>(d, e2, m, shifts + i, counts + i);
}

// Whether no number lies between the ends of an interval.
template <class T>
SLIMFAST_INLINE bool is_narrow(T low, T high) {
    const T middle = low + (high - low) / 2;
    return middle <= low || middle >= high;
}

// Elements of scratch for tridiagonal_eigenvalues.
template <class T>
constexpr i64 sturm_elements(i64 m) {
    return m + 4 * (m + lanes<T>);
}

// Halves every interval low[i]..high[i], which holds the i-th eigenvalue, until all are within `tolerance`.
// All arrays hold round_up(m, lanes) elements.
template <class T>
void bisect_alone(const T* d, const T* e2, i64 m, T* low, T* high, T* shifts, T* counts, T tolerance) {
    constexpr i64 v = lanes<T>;
    const i64 padded = round_up(m, v);
    T widest = 0;
    for (i64 i = 0; i < m; ++i) widest = larger(widest, high[i] - low[i]);
    for (i64 i = m; i < padded; ++i) low[i] = high[i] = low[m - 1];
    for (; widest > tolerance; widest /= 2) {
        for (i64 i = 0; i < padded; i += v) {
            store(shifts + i, load(low + i) + (load(high + i) - load(low + i)) * T(0.5));
        }
        count_all(d, e2, m, shifts, padded, counts);
        for (i64 i = 0; i < padded; ++i) {
            const bool above = counts[i] > static_cast<T>(i);
            high[i] = above ? shifts[i] : high[i];
            low[i] = above ? low[i] : shifts[i];
        }
    }
}

// values (m), ascending: the eigenvalues of the tridiagonal (d, e), each within an eighth of a rounding of
// its norm beyond the error of the counts.
//
// Every pass spends one shift per eigenvalue that is not yet settled: c eigenvalues that share an interval
// cut it into c + 1 parts, so a fresh spectrum gains log2(m + 1) bits in the first pass and a lone eigenvalue
// one bit.
template <class T>
void tridiagonal_eigenvalues(const T* d, const T* e, i64 m, T* values, T* work) {
    T* e2 = work;
    T* low = e2 + m;
    T* high = low + m + lanes<T>;
    T* shifts = high + m + lanes<T>;
    T* counts = shifts + m + lanes<T>;
    constexpr T least_square = sizeof(T) == 4 ? T(1e-35) : T(1e-290);
    T lowest = d[0], highest = d[0];
    for (i64 k = 0; k < m; ++k) {
        const T before = k > 0 ? e[k - 1] : T{0};
        const T after = k + 1 < m ? e[k] : T{0};
        const T radius = (before < 0 ? -before : before) + (after < 0 ? -after : after);
        lowest = smaller(lowest, d[k] - radius);
        highest = larger(highest, d[k] + radius);
        e2[k] = larger(after * after, least_square);
    }
    const T norm = larger(-lowest, highest);
    const T margin = 4 * epsilon<T> * norm + T(1e-35);
    const T tolerance = epsilon<T> / 8 * norm;
    for (i64 i = 0; i < m; ++i) {
        low[i] = lowest - margin;
        high[i] = highest + margin;
    }
    // A lone eigenvalue gains a bit a pass, so this many passes settle all.
    for (int pass = 0; pass < 8 * static_cast<int>(sizeof(T)); ++pass) {
        i64 total = 0;
        bool alone = true;
        for (i64 i = 0, end; i < m; i = end) {
            for (end = i + 1; end < m && low[end] == low[i] && high[end] == high[i];) ++end;
            const T width = high[i] - low[i];
            if (width <= tolerance || is_narrow(low[i], high[i])) continue;
            const T step = width / static_cast<T>(end - i + 1);
            for (i64 r = 0; r < end - i; ++r) shifts[total + r] = low[i] + step * static_cast<T>(r + 1);
            total += end - i;
            alone = alone && end == i + 1;
        }
        if (total == 0) break;
        // Most eigenvalues are on their own soon; then the bookkeeping below is not needed any more.
        if (alone && 2 * total > m) {
            bisect_alone(d, e2, m, low, high, shifts, counts, tolerance);
            break;
        }
        i64 padded = round_up(total, lanes<T>);
        for (i64 i = total; i < padded; ++i) shifts[i] = shifts[total - 1];
        count_all(d, e2, m, shifts, padded, counts);
        const T* shift = shifts;
        const T* count = counts;
        for (i64 i = 0, end; i < m; i = end) {
            for (end = i + 1; end < m && low[end] == low[i] && high[end] == high[i];) ++end;
            const T left = low[i], right = high[i];
            if (right - left <= tolerance || is_narrow(left, right)) continue;
            const i64 shared = end - i;
            // Rounding can make counts of neighbouring shifts disagree by one; the larger one holds from
            // there on.
            T most = 0;
            i64 r = 0;
            for (i64 index = i; index < end; ++index) {
                for (; r < shared; ++r) {
                    most = larger(most, count[r]);
                    if (most > static_cast<T>(index)) break;
                }
                low[index] = r > 0 ? shift[r - 1] : left;
                high[index] = r < shared ? shift[r] : right;
            }
            shift += shared;
            count += shared;
        }
    }
    for (i64 i = 0; i < m; ++i) values[i] = low[i] + (high[i] - low[i]) / 2;
}

// Adds to a sum in two parts what rounding would lose (Neumaier's variant of Kahan's summation).
SLIMFAST_INLINE void add_exactly(double term, double& sum, double& lost) {
    const double next = sum + term;
    const double a = sum < 0 ? -sum : sum, b = term < 0 ? -term : term;
    lost += a >= b ? (sum - next) + term : (term - next) + sum;
    sum = next;
}

// Shifts the eigenvalues (m) so that their sum is `trace` + `trace_lost`: the mean of their errors is known,
// and without it sums of many of them are as good as one of them.
template <class T>
void match_trace(T* values, i64 m, double trace, double trace_lost) {
    double rest = trace, lost = trace_lost;
    for (i64 i = 0; i < m; ++i) add_exactly(-static_cast<double>(values[i]), rest, lost);
    const T shift = static_cast<T>((rest + lost) / static_cast<double>(m));
    for (i64 i = 0; i < m; ++i) values[i] += shift;
}

}  // namespace slimfast::SLIMFAST_ISA
