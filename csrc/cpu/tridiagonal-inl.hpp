// One-stage Householder tridiagonalisation of a packed lower triangle, one pass over it per column.
//
// Rows are eliminated from the last one up, so that what is left is always the leading triangle, aligned, and
// the row being eliminated is contiguous. A step's rank-2 update is left pending and applied in the pass that
// forms the next step's matrix-vector product: the triangle is read and written once per step.
#pragma once

#include "simd.hpp"

namespace slimfast::SLIMFAST_ISA {

// Row i of a packed lower triangle: rows come in tiles of kLanes<T>, each padded to whole tiles, and the
// tiles on the diagonal are full and symmetric, so that no loop has a masked end.
template <class T>
SLIMFAST_INLINE T* packed_row(T* a, i64 i) {
    constexpr i64 v = kLanes<T>;
    const i64 tile = i / v;
    return a + v * v * triangle_size(tile) + (i - tile * v) * (tile + 1) * v;
}

template <class T>
constexpr i64 packed_elements(i64 m) {
    constexpr i64 v = kLanes<T>;
    return v * v * triangle_size(ceil_div(m, v));
}

// The lanes below `count`.
template <class T>
SLIMFAST_INLINE Mask<T> first_lanes(i64 count) {
    Mask<T> lane;
    for (int l = 0; l < kLanes<T>; ++l) lane[l] = l;
    return lane < static_cast<BitsOf<T>>(smaller<i64>(count, kLanes<T>));
}

// Rows of a tile that share a column's y in a register. What they are multiplied by does not fit beside and
// is read as an operand, which costs less than more passes over y.
template <class T>
constexpr int kFusedRows = smaller<int>(kLanes<T>, 8);

// For kFusedRows rows of the tile that starts at column `start`: a -= p q^T + q p^T, y += a^T u for the
// columns below `start`, and the vectors whose sums are the rows' products a u into sums.
template <class T>
SLIMFAST_INLINE void update_rows(T* tile, i64 start, i64 first, const T* p, const T* q, const T* u, T* y,
                                 Vec<T>* sums) {
    constexpr int count = kFusedRows<T>;
    const i64 stride = start + kLanes<T>;
    Vec<T> pr[count], qr[count], ur[count], sum[count];
    for (int r = 0; r < count; ++r) {
        pr[r] = splat(p[start + first + r]);
        qr[r] = splat(q[start + first + r]);
        ur[r] = splat(u[start + first + r]);
        sum[r] = Vec<T>{};
    }
    T* rows = tile + first * stride;
    for (i64 j = 0; j < start; j += kLanes<T>) {
        const Vec<T> pj = load(p + j), qj = load(q + j), uj = load(u + j);
        Vec<T> yj = load(y + j);
        for (int r = 0; r < count; ++r) {
            T* at = rows + r * stride + j;
            const Vec<T> a = load(at) - pr[r] * qj - qr[r] * pj;
            store(at, a);
            sum[r] += a * uj;
            yj += a * ur[r];
        }
        store(y + j, yj);
    }
    const Vec<T> pj = load(p + start), qj = load(q + start), uj = load(u + start);
    for (int r = 0; r < count; ++r) {
        T* at = rows + r * stride + start;
        const Vec<T> a = load(at) - pr[r] * qj - qr[r] * pj;
        store(at, a);
        sums[first + r] = sum[r] + a * uj;
    }
}

// The leading n rows: a -= p q^T + q p^T, then y = a u. All vectors are zero from n on to whole tiles, y is
// not.
template <class T>
void update_and_multiply(T* a, i64 n, const T* p, const T* q, const T* u, T* y) {
    constexpr i64 v = kLanes<T>;
    for (i64 start = 0; start < n; start += v) {
        Vec<T> sums[v] = {};
        T* tile = packed_row(a, start);
        for (i64 r = 0; r < v && start + r < n; r += kFusedRows<T>) {
            update_rows(tile, start, r, p, q, u, y, sums);
        }
        transpose<T>(sums);
        for (i64 half = v / 2; half > 0; half /= 2) {
            for (i64 r = 0; r < half; ++r) sums[r] += sums[r + half];
        }
        store(y + start, sums[0]);
    }
}

template <class T>
SLIMFAST_INLINE T dot(const T* a, const T* b, i64 padded) {
    Vec<T> sum{};
    for (i64 j = 0; j < padded; j += kLanes<T>) sum += load(a + j) * load(b + j);
    return sum_of<T>(sum);
}

// Diagonal d (m) and off-diagonal e (m - 1) of a tridiagonal matrix orthogonally similar to the packed
// triangle a, which is overwritten. `work` holds 4 round_up(m, lanes) elements.
//
// The reflector I - t u u^T of a step keeps u as long as its row is, so that the product with the matrix does
// not wait for t. A row too short for its squares to be accurate is dropped (t = 0): next to the matrix's
// norm, which is about one, it is far below a rounding.
template <class T>
void tridiagonalise(T* a, i64 m, T* d, T* e, T* work) {
    constexpr i64 v = kLanes<T>;
    constexpr T too_short = sizeof(T) == 4 ? T(1e-24) : T(1e-200);
    const i64 padded = round_up(m, v);
    T* p = work;
    T* q = work + padded;
    T* u = work + 2 * padded;
    T* y = work + 3 * padded;
    for (i64 j = 0; j < 4 * padded; ++j) work[j] = 0;
    for (i64 k = m - 1; k > 0; --k) {
        const T* row = packed_row(a, k);
        const T pk = p[k], qk = q[k];
        const i64 width = round_up(k, v);
        const Mask<T> inside = first_lanes<T>(k - (width - v));
        d[k] = row[k] - 2 * pk * qk;
        Vec<T> squares{};
        for (i64 j = 0; j < width; j += v) {
            Vec<T> x = load(row + j) - pk * load(q + j) - qk * load(p + j);
            if (j + v == width) x = inside ? x : Vec<T>{};
            squares += x * x;
            store(u + j, x);
        }
        const T last = u[k - 1];
        if (k == 1) {
            e[0] = last;
            break;
        }
        p[k] = 0;
        q[k] = 0;
        const T total = sum_of<T>(squares);
        const bool some = total >= too_short;
        // In double: an error here would scale the whole reflector.
        const double norm = square_root(static_cast<double>(total));
        const double beta = last > 0 ? -norm : norm;
        const T scale = some ? static_cast<T>(1 / (beta * (beta - last))) : T{0};
        e[k - 1] = some ? static_cast<T>(beta) : last;
        u[k - 1] = static_cast<T>(last - beta);
        update_and_multiply(a, k, p, q, u, y);
        // u becomes the next p, scale (y - half u) the next q.
        const T half = scale * dot(y, u, width) / 2;
        for (i64 j = 0; j < width; j += v) {
            const Vec<T> next = scale * (load(y + j) - half * load(u + j));
            store(y + j, j + v == width ? (inside ? next : Vec<T>{}) : next);
        }
        T* previous_p = p;
        T* previous_q = q;
        p = u;
        q = y;
        u = previous_p;
        y = previous_q;
    }
    d[0] = packed_row(a, 0)[0] - 2 * p[0] * q[0];
}

}  // namespace slimfast::SLIMFAST_ISA
