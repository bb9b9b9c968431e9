// One-stage Householder tridiagonalisation of a packed lower triangle, one pass over it per column.
//
// Rows are eliminated from the last one up, so that what is left is always the leading triangle, aligned, and
// the row being eliminated is contiguous. A step's rank-2 update is left pending and applied in the pass that
// forms the next step's matrix-vector product: the triangle is read and written once per step.
#pragma once

#include "simd.hpp"

namespace slimfast::SLIMFAST_ISA {

// Row i of a packed lower triangle: rows come in tiles of lanes<T>, each padded to whole tiles, and the tiles
// on the diagonal are full and symmetric, so that no loop has a masked end.
template <class T>
SLIMFAST_INLINE T* packed_row(T* a, i64 i) {
    constexpr i64 v = lanes<T>;
    const i64 tile = i / v;
    return a + v * v * (tile * (tile + 1) / 2) + (i - tile * v) * (tile + 1) * v;
}

template <class T>
constexpr i64 packed_elements(i64 m) {
    constexpr i64 v = lanes<T>;
    const i64 tiles = (m + v - 1) / v;
    return v * v * (tiles * (tiles + 1) / 2);
}

// The reflector I - u u^T that maps x (n) onto (0, ..., 0, beta): fills u, zero from n on to whole tiles, and
// returns beta. A vector too short for its squares to be accurate is dropped (u = 0): next to the matrix's
// norm, which is about one, it is far below a rounding.
template <class T>
T reflector(const T* x, i64 n, T* u) {
    constexpr i64 v = lanes<T>;
    const i64 padded = round_up(n, v);
    Vec<T> squares{};
    i64 j = 0;
    for (; j + v <= n; j += v) squares += load(x + j) * load(x + j);
    T total = sum_of<T>(squares);
    for (; j < n; ++j) total += x[j] * x[j];
    const T last = x[n - 1];
    constexpr T too_short = sizeof(T) == 4 ? T(1e-30) : T(1e-280);
    if (total < too_short) {
        for (j = 0; j < padded; ++j) u[j] = 0;
        return last;
    }
    // In double: an error here would scale the whole reflector.
    const double norm = square_root(static_cast<double>(total));
    const double beta = last > 0 ? -norm : norm;
    const T scale = static_cast<T>(1.0 / square_root(beta * (beta - last)));
    for (j = 0; j + v <= n; j += v) store(u + j, load(x + j) * scale);
    for (; j < n; ++j) u[j] = x[j] * scale;
    for (; j < padded; ++j) u[j] = 0;
    u[n - 1] = static_cast<T>(last - beta) * scale;
    return static_cast<T>(beta);
}

// Rows of the triangle that one inner loop holds in registers.
constexpr int fused_rows = SLIMFAST_REGISTERS == 32 ? 4 : 2;

// For `fused_rows` rows of a tile that starts at column `start`: a -= p q^T + q p^T, y += a^T u for the
// columns below `start`, and the vectors whose sums are the rows' products a u into sums[row].
template <class T>
SLIMFAST_INLINE void fused_update(T* const (&rows)[fused_rows], i64 first, i64 start, const T* p, const T* q,
                                  const T* u, T* y, Vec<T>* sums) {
    constexpr i64 v = lanes<T>;
    Vec<T> pr[fused_rows], qr[fused_rows], ur[fused_rows], sum[fused_rows];
    for (int r = 0; r < fused_rows; ++r) {
        pr[r] = splat(p[first + r]);
        qr[r] = splat(q[first + r]);
        ur[r] = splat(u[first + r]);
        sum[r] = Vec<T>{};
    }
    for (i64 j = 0; j < start; j += v) {
        const Vec<T> pj = load(p + j), qj = load(q + j), uj = load(u + j);
        Vec<T> yj = load(y + j);
        for (int r = 0; r < fused_rows; ++r) {
            const Vec<T> a = load(rows[r] + j) - pr[r] * qj - qr[r] * pj;
            store(rows[r] + j, a);
            sum[r] += a * uj;
            yj += a * ur[r];
        }
        store(y + j, yj);
    }
    const Vec<T> pj = load(p + start), qj = load(q + start), uj = load(u + start);
    for (int r = 0; r < fused_rows; ++r) {
        const Vec<T> a = load(rows[r] + start) - pr[r] * qj - qr[r] * pj;
        store(rows[r] + start, a);
        sums[r] = sum[r] + a * uj;
    }
}

// The leading n rows: a -= p q^T + q p^T, then y = a u. All vectors are zero from n on to whole tiles, y is
// not.
template <class T>
void update_and_multiply(T* a, i64 n, const T* p, const T* q, const T* u, T* y) {
    constexpr i64 v = lanes<T>;
    static_assert(v % fused_rows == 0 || v < fused_rows);
    const i64 padded = round_up(n, v);
    for (i64 j = 0; j < padded; ++j) y[j] = 0;
    for (i64 start = 0; start < padded; start += v) {
        alignas(64) T sums[v * v];
        T* tile = packed_row(a, start);
        const i64 stride = start + v;
        for (i64 r = 0; r < v; r += fused_rows) {
            if (start + r >= n) {
                for (i64 l = r * v; l < v * v; ++l) sums[l] = 0;
                break;
            }
            T* rows[fused_rows];
            for (int i = 0; i < fused_rows; ++i) rows[i] = tile + (r + i) * stride;
            Vec<T> vectors[fused_rows];
            fused_update<T>(rows, start + r, start, p, q, u, y, vectors);
            for (int i = 0; i < fused_rows; ++i) store(sums + (r + i) * v, vectors[i]);
        }
        // Adds up every row of `sums`, all rows at once.
        for (i64 width = v / 2; width > 0; width /= 2) {
            for (i64 r = 0; r < v; ++r) {
                for (i64 l = 0; l < width; ++l) sums[r * v + l] += sums[r * v + l + width];
            }
        }
        for (i64 r = 0; r < v; ++r) y[start + r] += sums[r * v];
    }
}

template <class T>
SLIMFAST_INLINE T dot(const T* a, const T* b, i64 padded) {
    Vec<T> sum{};
    for (i64 j = 0; j < padded; j += lanes<T>) sum += load(a + j) * load(b + j);
    return sum_of<T>(sum);
}

// Diagonal d (m) and off-diagonal e (m - 1) of a tridiagonal matrix orthogonally similar to the packed
// triangle a, which is overwritten. `work` holds 4 round_up(m, lanes) elements.
template <class T>
void tridiagonalise(T* a, i64 m, T* d, T* e, T* work) {
    constexpr i64 v = lanes<T>;
    const i64 padded = round_up(m, v);
    T* p = work;
    T* q = work + padded;
    T* u = work + 2 * padded;
    T* y = work + 3 * padded;
    for (i64 j = 0; j < 4 * padded; ++j) work[j] = 0;
    for (i64 k = m - 1; k > 0; --k) {
        T* row = packed_row(a, k);
        const T pk = p[k], qk = q[k];
        for (i64 j = 0; j <= k; ++j) row[j] -= pk * q[j] + qk * p[j];
        d[k] = row[k];
        p[k] = 0;
        q[k] = 0;
        if (k == 1) {
            e[0] = row[0];
            break;
        }
        e[k - 1] = reflector(row, k, u);
        update_and_multiply(a, k, p, q, u, y);
        const i64 width = round_up(k, v);
        const T half = dot(y, u, width) / 2;
        // u becomes the next p, y - half u the next q.
        for (i64 j = 0; j < k; ++j) y[j] -= half * u[j];
        for (i64 j = k; j < width; ++j) y[j] = 0;
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
