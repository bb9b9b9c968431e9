// All eigenvalues of a symmetric tridiagonal matrix: Sturm counts part them, interpolation finds them.
#pragma once

#include "simd.hpp"
#include "split_sum.hpp"

namespace slimfast::SLIMFAST_ISA {

// A characteristic polynomial's value is mantissa 2^exponent: its own range is far beyond T's.
template <class T>
struct SturmPoints {
    T* x;
    T* mantissa;
    T* exponent;
    // How many eigenvalues lie below x.
    T* count;
};

// The sequence p_k = (d_k - x) p_(k-1) - e_(k-1)^2 p_(k-2) changes its sign once for every eigenvalue below x
// (Givens, "A method of computing eigenvalues and eigenvectors suggested by classical results on symmetric
// matrices", 1953). No division, and the last p is the characteristic polynomial, which the search below
// interpolates.
//
// Both terms are multiplied by a power of two every few steps. Neither can overflow: the norm is at most m
// and x within it. Nor do both vanish: where x hits the diagonal a pair falls by e^2 in two steps, the
// squares `e2` are at least (kLeastOffDiagonal norm)^2, and where chance still brings both to zero the last
// sign is carried on. The bound is far below a rounding: it moves every eigenvalue of a cluster, and so their
// sums.
//
template <class T>
constexpr T kLeastOffDiagonal = Float<T>::kEpsilon / 1024;

// With `kCounting` the points' counts are filled too; the sign of the mantissa tells whether they are odd.
// Coefficients are those of one matrix, or `kInterleaved` of one for each lane.
template <class T, int kVectors, bool kCounting, bool kInterleaved = false>
SLIMFAST_INLINE void sturm_sequence(const T* d, const T* e2, i64 m, const SturmPoints<T>& points, i64 first) {
    constexpr int mantissa_bits = Float<T>::kMantissaBits;
    constexpr BitsOf<T> bias = Float<T>::kBias, magnitude = Float<T>::kMagnitude;
    constexpr int sign_bit = 8 * sizeof(T) - 1;
    constexpr int steps = sizeof(T) == 4 ? 4 : 8;
    const Mask<T> tiny = (Mask<T>)splat(Float<T>::kNegligibleSquare);
    const auto coefficient = [](const T* from, i64 k) __attribute__((always_inline)) {
        if constexpr (kInterleaved) {
            return load(from + k * kLanes<T>);
        } else {
            return splat(from[k]);
        }
    };
    Vec<T> x[kVectors], p[kVectors], before[kVectors];
    Mask<T> changes[kVectors], exponents[kVectors];
    for (int i = 0; i < kVectors; ++i) {
        x[i] = load(points.x + first + i * kLanes<T>);
        p[i] = coefficient(d, 0) - x[i];
        before[i] = splat(T{1});
        if constexpr (kCounting) changes[i] = (Mask<T>)p[i] >> sign_bit;
        exponents[i] = Mask<T>{};
    }
    const auto step = [&](i64 k) __attribute__((always_inline)) {
        const Vec<T> dk = coefficient(d, k), ek = coefficient(e2, k - 1);
        for (int i = 0; i < kVectors; ++i) {
            const Vec<T> next = (dk - x[i]) * p[i] - ek * before[i];
            if constexpr (kCounting) changes[i] += ((Mask<T>)next ^ (Mask<T>)p[i]) >> sign_bit;
            before[i] = p[i];
            p[i] = next;
        }
    };
    const auto rescale = [&]() __attribute__((always_inline)) {
        for (int i = 0; i < kVectors; ++i) {
            const Vec<T> size =
                (Vec<T>)((Mask<T>)p[i] & magnitude) + (Vec<T>)((Mask<T>)before[i] & magnitude);
            const Mask<T> exponent = (Mask<T>)size & Float<T>::kExponent;
            const Vec<T> scale = (Vec<T>)((2 * bias << mantissa_bits) - exponent);
            const Vec<T> carried = (Vec<T>)(((Mask<T>)p[i] & ~magnitude) | tiny);
            p[i] = p[i] * scale + carried;
            before[i] *= scale;
            exponents[i] += exponent >> mantissa_bits;
        }
    };
    i64 k = 1;
    i64 scalings = 1;
    for (; k + steps <= m; k += steps, ++scalings) {
        for (int s = 0; s < steps; ++s) step(k + s);
        rescale();
    }
    for (; k < m; ++k) step(k);
    rescale();
    for (int i = 0; i < kVectors; ++i) {
        const i64 at = first + i * kLanes<T>;
        if constexpr (kCounting) store(points.count + at, __builtin_convertvector(-changes[i], Vec<T>));
        store(points.mantissa + at, p[i]);
        store(points.exponent + at,
              __builtin_convertvector(exponents[i], Vec<T>) - static_cast<T>(scalings * bias));
    }
}

// The points first..last - 1, multiples of lanes apart.
template <class T, bool kCounting, bool kInterleaved = false>
void sturm_sequences(const T* d, const T* e2, i64 m, const SturmPoints<T>& points, i64 first, i64 last) {
    constexpr int most = SLIMFAST_REGISTERS == 32 ? 4 : kCounting ? 2 : 3;
    constexpr i64 v = kLanes<T>;
    for (; first + most * v <= last; first += most * v) {
        sturm_sequence<T, most, kCounting, kInterleaved>(d, e2, m, points, first);
    }
    if (most > 2 && first + 2 * v <= last) {
        sturm_sequence<T, 2, kCounting, kInterleaved>(d, e2, m, points, first);
        first += 2 * v;
    }
    if (first < last) sturm_sequence<T, 1, kCounting, kInterleaved>(d, e2, m, points, first);
}

// Where an eigenvalue is: between a and b, whichever is larger, with the polynomial's values there and at c,
// the point before; NaN where they are not known. All arrays hold round_up(m, lanes) elements.
template <class T>
struct Brackets {
    T *a, *a_mantissa, *a_exponent;
    T *b, *b_mantissa, *b_exponent;
    T *c, *c_mantissa, *c_exponent;
    // How far the eigenvalue is: kShared, kSearched or kFound.
    T* state;
};
// It shares its bracket with others; it is alone in it; its value is in the points' x.
enum State { kShared, kSearched, kFound };

// Interpolation takes about ten passes, whatever the spectrum; after these the brackets are halved, which
// ends.
template <class T>
constexpr int kInterpolatedPasses = 4 * sizeof(T) + 8;
template <class T>
constexpr int kMostPasses = kInterpolatedPasses<T> + 16 * sizeof(T);

// Elements of scratch for tridiagonal_eigenvalues.
template <class T>
constexpr i64 sturm_elements(i64 m) {
    return m + 14 * round_up(m, kLanes<T>);
}

// mantissa 2^exponent for exponents at most zero.
template <class T>
SLIMFAST_INLINE Vec<T> scaled(Vec<T> mantissa, Vec<T> exponent) {
    constexpr BitsOf<T> bias = Float<T>::kBias;
    constexpr T least = T{1} - bias;
    const Vec<T> held = exponent < least ? splat(least) : exponent;
    return mantissa * (Vec<T>)((__builtin_convertvector(held, Mask<T>) + bias) << Float<T>::kMantissaBits);
}

// The next points of the eigenvalues at..at + lanes - 1 into x: by inverse quadratic interpolation where it
// can be trusted, else the middle (Chandrupatla, "A new hybrid quadratic/bisection algorithm for finding the
// zero of a nonlinear function without using derivatives", 1997). Those whose bracket is within the tolerance
// become kFound, and x is where the chord is zero.
template <class T>
SLIMFAST_INLINE void next_points(const Brackets<T>& brackets, i64 at, Vec<T> tolerance, bool halve, T* x) {
    const Vec<T> a = load(brackets.a + at), b = load(brackets.b + at), c = load(brackets.c + at);
    const Vec<T> ea = load(brackets.a_exponent + at), eb = load(brackets.b_exponent + at),
                 ec = load(brackets.c_exponent + at);
    Vec<T> top = ea > eb ? ea : eb;
    top = top > ec ? top : ec;
    const Vec<T> fa = scaled<T>(load(brackets.a_mantissa + at), ea - top),
                 fb = scaled<T>(load(brackets.b_mantissa + at), eb - top),
                 fc = scaled<T>(load(brackets.c_mantissa + at), ec - top);
    const Vec<T> width = b - a;
    const Vec<T> chord = fa / (fa - fb);
    const Vec<T> xi = width / (b - c);
    const Vec<T> phi = (fa - fb) / (fc - fb);
    const Vec<T> quadratic = chord * (fc / (fc - fb)) + (c - a) / width * (fa / (fc - fa)) * (fb / (fc - fb));
    const Vec<T> one = splat(T{1}), half = splat(T(0.5));
    const Mask<T> trusted = (phi * phi < xi) & ((one - phi) * (one - phi) < one - xi);
    const Vec<T> state = load(brackets.state + at);
    Vec<T> t = trusted & (state == T(kSearched)) ? quadratic : half;
    const Vec<T> size = width < 0 ? -width : width;
    const Vec<T> magnitude = a < 0 ? -a : a;
    // A step shorter than the distance of two numbers would not move.
    Vec<T> nearest = magnitude * Float<T>::kEpsilon;
    nearest = nearest > tolerance ? nearest : tolerance;
    const Vec<T> least = nearest / size;
    if (halve) t = half;
    t = t > least ? t : least;
    t = t < one - least ? t : one - least;
    const Mask<T> ends = (size <= 2 * nearest) & (state == T(kSearched));
    const Vec<T> inside = (chord >= 0) & (chord <= one) ? chord : half;
    const Vec<T> next = a + width * (ends ? inside : t);
    store(x + at, state == T(kFound) ? load(x + at) : next);
    store(brackets.state + at, ends ? splat(T(kFound)) : state);
}

// Takes the polynomial at x into the brackets at..at + lanes - 1, where `takes`; x is above the eigenvalue
// where `x_above`. Returns where x is on a's side.
template <class T>
SLIMFAST_INLINE Mask<T> take_points(const Brackets<T>& brackets, i64 at, const SturmPoints<T>& points,
                                    Mask<T> takes, Mask<T> x_above) {
    const Vec<T> a = load(brackets.a + at), fa = load(brackets.a_mantissa + at),
                 ea = load(brackets.a_exponent + at);
    const Vec<T> b = load(brackets.b + at), fb = load(brackets.b_mantissa + at),
                 eb = load(brackets.b_exponent + at);
    const Mask<T> same = ~(x_above ^ (a > b));
    const auto put = [&](T* to, Vec<T> value) { store(to + at, takes ? value : load(to + at)); };
    put(brackets.c, same ? a : b);
    put(brackets.c_mantissa, same ? fa : fb);
    put(brackets.c_exponent, same ? ea : eb);
    put(brackets.b, same ? b : a);
    put(brackets.b_mantissa, same ? fb : fa);
    put(brackets.b_exponent, same ? eb : ea);
    put(brackets.a, load(points.x + at));
    put(brackets.a_mantissa, load(points.mantissa + at));
    put(brackets.a_exponent, load(points.exponent + at));
    return same;
}

// The end of the run of eigenvalues from i on that share one bracket.
template <class T>
SLIMFAST_INLINE i64 shared_end(const Brackets<T>& brackets, i64 i, i64 m) {
    i64 end = i + 1;
    while (end < m && brackets.state[end] == T(kShared) && brackets.a[end] == brackets.a[i] &&
           brackets.b[end] == brackets.b[i])
        ++end;
    return end;
}

// The least state of the eigenvalues at..at + lanes - 1.
template <class T>
SLIMFAST_INLINE State least_of(const Brackets<T>& brackets, i64 at) {
    T least = brackets.state[at];
    for (i64 l = 1; l < kLanes<T>; ++l) least = smaller(least, brackets.state[at + l]);
    return static_cast<State>(static_cast<int>(least));
}

// Cuts every shared bracket of c eigenvalues into c + 1 parts by as many points; one within the tolerance is
// where all of them are found.
template <class T>
void share_points(const Brackets<T>& brackets, i64 m, T tolerance, T* x) {
    for (i64 i = 0, end; i < m; i = end) {
        end = i + 1;
        if (brackets.state[i] != T(kShared)) continue;
        end = shared_end(brackets, i, m);
        const T low = brackets.a[i], width = brackets.b[i] - low;
        const T middle = low + width / 2;
        const bool narrow = width <= tolerance || middle <= low || middle >= brackets.b[i];
        const T step = width / static_cast<T>(end - i + 1);
        for (i64 r = i; r < end; ++r) {
            x[r] = narrow ? middle : low + step * static_cast<T>(r - i + 1);
            if (narrow) brackets.state[r] = T(kFound);
        }
    }
}

// Gives every eigenvalue of a shared bracket the part of it that it lies in; returns whether any are left.
template <class T>
bool part_shared(const Brackets<T>& brackets, i64 m, const SturmPoints<T>& points) {
    bool left = false;
    for (i64 i = 0, end; i < m; i = end) {
        end = i + 1;
        if (brackets.state[i] != T(kShared)) continue;
        end = shared_end(brackets, i, m);
        const T low[] = {brackets.a[i], brackets.a_mantissa[i], brackets.a_exponent[i]};
        const T high[] = {brackets.b[i], brackets.b_mantissa[i], brackets.b_exponent[i]};
        // Rounding can make counts of neighbouring points disagree by one; the larger one holds from there
        // on.
        T most = 0;
        i64 r = i, before = -1;
        bool alone = true;
        for (i64 index = i; index < end; ++index) {
            for (; r < end; ++r) {
                most = larger(most, points.count[r]);
                if (most > static_cast<T>(index)) break;
            }
            const bool first = r == i, last = r == end;
            brackets.a[index] = first ? low[0] : points.x[r - 1];
            brackets.a_mantissa[index] = first ? low[1] : points.mantissa[r - 1];
            brackets.a_exponent[index] = first ? low[2] : points.exponent[r - 1];
            brackets.c[index] = brackets.b[index] = last ? high[0] : points.x[r];
            brackets.c_mantissa[index] = brackets.b_mantissa[index] = last ? high[1] : points.mantissa[r];
            brackets.c_exponent[index] = brackets.b_exponent[index] = last ? high[2] : points.exponent[r];
            alone = r != before;
            before = r;
            brackets.state[index] = T(alone ? kSearched : kShared);
            if (!alone) brackets.state[index - 1] = T(kShared);
            left = left || !alone;
        }
    }
    return left;
}

// values (m), ascending: the eigenvalues of the tridiagonal (d, e), each within an eighth of a rounding of
// its norm, or one of its own, beyond the error of the sequences.
//
// Every pass spends one point on each eigenvalue that is not found. While c of them share a bracket they cut
// it into c + 1 parts; one that is alone is searched for, and its last digits come several at a time.
template <class T>
void tridiagonal_eigenvalues(const T* d, const T* e, i64 m, T* values, T* work) {
    constexpr i64 v = kLanes<T>;
    const i64 padded = round_up(m, v);
    T* e2 = work;
    T* arrays[14];
    for (int i = 0; i < 14; ++i) arrays[i] = work + m + i * padded;
    const SturmPoints<T> points{arrays[0], arrays[1], arrays[2], arrays[3]};
    const Brackets<T> brackets{arrays[4], arrays[5],  arrays[6],  arrays[7],  arrays[8],
                               arrays[9], arrays[10], arrays[11], arrays[12], arrays[13]};
    T lowest = d[0], highest = d[0];
    for (i64 k = 0; k < m; ++k) {
        const T before = k > 0 ? e[k - 1] : T{0};
        const T after = k + 1 < m ? e[k] : T{0};
        const T radius = (before < 0 ? -before : before) + (after < 0 ? -after : after);
        lowest = smaller(lowest, d[k] - radius);
        highest = larger(highest, d[k] + radius);
    }
    const T norm = larger(-lowest, highest);
    const T margin = 4 * Float<T>::kEpsilon * norm + T(1e-35);
    const T tolerance = Float<T>::kEpsilon / 8 * norm;
    const T least_square = kLeastOffDiagonal<T> * norm * (kLeastOffDiagonal<T> * norm);
    for (i64 k = 0; k + 1 < m; ++k) e2[k] = larger(e[k] * e[k], least_square);
    for (i64 i = 0; i < padded; ++i) {
        points.x[i] = brackets.a[i] = lowest - margin;
        brackets.b[i] = brackets.c[i] = highest + margin;
        brackets.a_mantissa[i] = brackets.b_mantissa[i] = brackets.c_mantissa[i] = Float<T>::kNan;
        brackets.a_exponent[i] = brackets.b_exponent[i] = brackets.c_exponent[i] = 0;
        brackets.state[i] = T(i < m ? (m > 1 ? kShared : kSearched) : kFound);
    }
    Mask<T> odd;
    for (int l = 0; l < kLanes<T>; ++l) odd[l] = -(l & 1);
    bool any_shared = m > 1;
    for (int pass = 0; pass < kMostPasses<T>; ++pass) {
        for (i64 at = 0; at < padded; at += v) {
            next_points(brackets, at, splat(tolerance), pass >= kInterpolatedPasses<T>, points.x);
        }
        if (any_shared) share_points(brackets, m, tolerance, points.x);
        bool finished = true;
        for (i64 first = 0, last; first < padded; first = last) {
            const State least = least_of(brackets, first);
            for (last = first + v; last < padded && least_of(brackets, last) == least;) last += v;
            if (least == kFound) continue;
            finished = false;
            if (least == kShared) {
                sturm_sequences<T, true>(d, e2, m, points, first, last);
            } else {
                sturm_sequences<T, false>(d, e2, m, points, first, last);
            }
            for (i64 at = first; at < last; at += v) {
                // Below the i-th eigenvalue lie i, above it i + 1 and the sign is the other one; `at` is
                // even.
                take_points<T>(brackets, at, points, load(brackets.state + at) == T(kSearched),
                               (load(points.mantissa + at) < 0) ^ odd);
            }
        }
        if (finished) break;
        if (any_shared) any_shared = part_shared(brackets, m, points);
    }
    // Close neighbours were found independently.
    values[0] = points.x[0];
    for (i64 i = 1; i < m; ++i) values[i] = larger(points.x[i], values[i - 1]);
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
