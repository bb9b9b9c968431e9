// Stage one of two for large matrices: reduction of a symmetric matrix to a band by blocks of reflectors.
//
// A block of kBand reflectors Q = I - V T V^T changes the trailing matrix A to A - V W^T - W V^T, where
// W = A V T - V T^T V^T A V T / 2 (Bischof, Lang, Sun, "A framework for symmetric band reduction", ACM TOMS
// 26, 2000). A V of one block and the update by the block before go over A in the same pass, tile by tile, so
// that A is read and written once per kBand columns, at the rate of a matrix product.
#pragma once

#include "../common/band_panels.hpp"
#include "kernels.hpp"
#include "simd.hpp"

namespace slimfast::SLIMFAST_ISA {

// Row `row` of a panel, see band_panels.hpp.
template <class T>
SLIMFAST_INLINE T* panel_row(T* a, i64 n, i64 panel, i64 row) {
    return a + panel_start(n, panel) + (row - kBand * panel) * kBand;
}

// The register tile of products with kBand columns.
template <class T>
struct BandTile {
    static constexpr int kAll = kBand / kLanes<T>;
    static constexpr int kVectors = kAll < 4 ? kAll : 4;
    static constexpr int kRows = (SLIMFAST_REGISTERS - 4) / kVectors;
};

// c (rows, vectors lanes) += sign sum over k of a[row, k] b[k, :]; b and c have kBand columns.
template <class T, int kRows, int kSign>
SLIMFAST_INLINE void band_tile(i64 terms, const T* a, i64 row_stride, i64 term_stride, const T* b, T* c) {
    constexpr int vectors = BandTile<T>::kVectors;
    Vec<T> sum[kRows][vectors];
    for (int r = 0; r < kRows; ++r) {
        for (int j = 0; j < vectors; ++j) sum[r][j] = Vec<T>{};
    }
    for (i64 k = 0; k < terms; ++k) {
        Vec<T> factor[kRows];
        for (int r = 0; r < kRows; ++r) factor[r] = splat(a[r * row_stride + k * term_stride]);
        for (int j = 0; j < vectors; ++j) {
            const Vec<T> value = load(b + k * kBand + j * kLanes<T>);
            for (int r = 0; r < kRows; ++r) sum[r][j] += factor[r] * value;
        }
    }
    for (int r = 0; r < kRows; ++r) {
        for (int j = 0; j < vectors; ++j) {
            T* at = c + r * kBand + j * kLanes<T>;
            store(at, kSign > 0 ? load(at) + sum[r][j] : load(at) - sum[r][j]);
        }
    }
}

template <class T, int kRows, int kSign>
void band_rows(i64 count, i64 terms, const T* a, i64 row_stride, i64 term_stride, const T* b, T* c) {
    constexpr int width = BandTile<T>::kVectors * kLanes<T>;
    i64 r = 0;
    for (; r + kRows <= count; r += kRows) {
        for (i64 j = 0; j < kBand; j += width) {
            band_tile<T, kRows, kSign>(terms, a + r * row_stride, row_stride, term_stride, b + j,
                                       c + r * kBand + j);
        }
    }
    if constexpr (kRows > 1) {
        if (r < count) {
            band_rows<T, kRows / 2, kSign>(count - r, terms, a + r * row_stride, row_stride, term_stride, b,
                                           c + r * kBand);
        }
    }
}

// c (count, kBand) += sign a b, where a is (count, terms) with any strides and b (terms, kBand).
template <class T, int kSign>
SLIMFAST_INLINE void add_product(i64 count, i64 terms, const T* a, i64 row_stride, i64 term_stride,
                                 const T* b, T* c) {
    // A short sum at a time: many terms one after another would lose more.
    constexpr i64 most = 3 * kBand;
    for (i64 k = 0; k < terms; k += most) {
        band_rows<T, BandTile<T>::kRows, kSign>(count, smaller(most, terms - k), a + k * term_stride,
                                                row_stride, term_stride, b + k * kBand, c);
    }
}

// to (kBand, kBand) = from^T.
template <class T>
void transpose_block(const T* from, T* to) {
    constexpr i64 v = kLanes<T>;
    for (i64 r = 0; r < kBand; r += v) {
        for (i64 c = 0; c < kBand; c += v) {
            Vec<T> rows[v];
            for (i64 i = 0; i < v; ++i) rows[i] = load(from + (r + i) * kBand + c);
            transpose<T>(rows);
            for (i64 i = 0; i < v; ++i) store(to + (c + i) * kBand + r, rows[i]);
        }
    }
}

// The reflector of column c of a panel x, from the products of that column with itself (below its head:
// `square`) and with those to its right: row c of r, that of V, and the weights of the columns that the
// reflector is applied to. Returns what the column is multiplied by in its vector.
template <class T>
SLIMFAST_INLINE T form_reflector(T* x, i64 c, const T* products, double square, T* weights, T* r) {
    const T head = x[c * kBand + c];
    T beta = head, scale = 0;
    // Whatever lies below the head: next to a large one its squares are lost in the sum, so that a
    // column with nothing below is reflected too, which turns its sign.
    if (square > Float<T>::kNegligibleSquare) {
        const double norm = square_root(square);
        const double reflected = head > 0 ? -norm : norm;
        beta = static_cast<T>(reflected);
        scale = static_cast<T>(1.0 / square_root(reflected * (reflected - head)));
    }
    T* row = x + c * kBand;
    const T first = (head - beta) * scale;
    for (i64 j = 0; j < kBand; ++j) {
        weights[j] = j > c ? scale * (products[j] - beta * row[j]) : T{0};
        r[c * kBand + j] = j < c ? T{0} : j == c ? beta : row[j] - first * weights[j];
        if (j >= c) row[j] = j == c ? first : T{0};
    }
    return scale;
}

// Applies the reflector of column c, of which there is none for -1, and sums the products of the next column
// with itself and those to its right, sixteen rows at a time and those in turn, so that long sums lose no
// more than short ones. Returns the next column's product with itself.
template <class T>
SLIMFAST_INLINE double apply_and_sum(T* x, i64 rows, i64 c, T scale, const T* weights, T* products) {
    constexpr int vectors = kBand / kLanes<T>;
    constexpr i64 group = 16;
    const i64 next = c + 1;
    Vec<T> total[vectors], weight[vectors];
    Mask<T> own[vectors] = {};
    for (int j = 0; j < vectors; ++j) {
        total[j] = Vec<T>{};
        weight[j] = load(weights + j * kLanes<T>);
        for (int l = 0; l < kLanes<T>; ++l) own[j][l] = j * kLanes<T> + l == c ? -1 : 0;
    }
    double square = 0;
    for (i64 begin = next; begin < rows; begin += group) {
        Vec<T> sum[vectors];
        for (int j = 0; j < vectors; ++j) sum[j] = Vec<T>{};
        const i64 end = smaller(begin + group, rows);
        for (i64 i = begin; i < end; ++i) {
            T* row = x + i * kBand;
            Vec<T> value[vectors];
            for (int j = 0; j < vectors; ++j) value[j] = load(row + j * kLanes<T>);
            if (c >= 0) {
                const Vec<T> u = splat(row[c] * scale);
                for (int j = 0; j < vectors; ++j) {
                    value[j] = own[j] ? u : value[j] - u * weight[j];
                    store(row + j * kLanes<T>, value[j]);
                }
            }
            if (next == kBand) continue;
            const T lead = row[next];
            for (int j = 0; j < vectors; ++j) sum[j] += lead * value[j];
        }
        for (int j = 0; j < vectors; ++j) {
            total[j] += sum[j];
            store(products + j * kLanes<T>, sum[j]);
        }
        if (next < kBand) square += products[next];
    }
    for (int j = 0; j < vectors; ++j) store(products + j * kLanes<T>, total[j]);
    return square;
}

// QR of a panel x (rows, kBand) of at least kBand rows: x becomes V, its columns scaled so that every
// reflector is I - v v^T, and r (kBand, kBand) the triangular factor. One pass a column.
template <class T>
void panel_qr(T* x, i64 rows, T* r) {
    T products[kBand], weights[kBand] = {};
    for (i64 i = 0; i < kBand * kBand; ++i) r[i] = 0;
    double square = apply_and_sum(x, rows, -1, T{0}, weights, products);
    for (i64 c = 0; c < kBand; ++c) {
        const T scale = form_reflector(x, c, products, square, weights, r);
        square = apply_and_sum(x, rows, c, scale, weights, products);
    }
}

// t (kBand, kBand) such that the product of the reflectors is I - V t V^T, for reflectors I - v v^T: the
// inverse of the unit upper triangle of V^T V.
template <class T>
void block_factor(const T* v, i64 rows, T* t) {
    T gram[kBand * kBand] = {};
    add_product<T, 1>(kBand, rows, v, 1, kBand, v, gram);
    for (i64 i = 0; i < kBand * kBand; ++i) t[i] = 0;
    for (i64 j = 0; j < kBand; ++j) {
        for (i64 i = 0; i < j; ++i) {
            T sum = 0;
            for (i64 k = i; k < j; ++k) sum += t[i * kBand + k] * gram[k * kBand + j];
            t[i * kBand + j] = -sum;
        }
        t[j * kBand + j] = 1;
    }
}

// All that the reduction of one matrix of n rows works with; shared by the threads of a team.
template <class T>
struct BandWork {
    T* a;         // panel_elements(n)
    T* w;         // (n, kBand)
    T* v_blocks;  // (n / kBand) blocks (kBand, kBand): V^T of the block of reflectors before, and W^T
    T* w_blocks;
    T* y;      // (kBandSlices, n, kBand): parts of A V
    T* grams;  // (kBandSlices, kBand, kBand): parts of V^T A V
    T* r;      // (n / kBand) blocks: the triangular factors below the diagonal
    T* t;      // (kBand, kBand)
};

// Parts of a sum that threads form at once; fixed, so that the result does not depend on how many there are.
constexpr i64 kBandSlices = 8;
// Rows of a tile of A: with what it is multiplied by, it stays in L2.
constexpr i64 kBandRowsPerTile = 3 * kBand;

template <class T>
constexpr i64 band_work_elements(i64 n) {
    return panel_elements(n) + n * kBand * (4 + kBandSlices) + (kBandSlices + 1) * kBand * kBand;
}

template <class T>
BandWork<T> band_work(T* memory, i64 n) {
    BandWork<T> work;
    work.a = memory;
    work.w = work.a + panel_elements(n);
    work.v_blocks = work.w + n * kBand;
    work.w_blocks = work.v_blocks + n * kBand;
    work.r = work.w_blocks + n * kBand;
    work.y = work.r + n * kBand;
    work.grams = work.y + kBandSlices * n * kBand;
    work.t = work.grams + kBandSlices * kBand * kBand;
    return work;
}

// Subtracts V W^T + W V^T of the block of reflectors in `panel` from rows first..first + rows - 1 of the
// columns of `target`.
template <class T>
void update_tile(const BandWork<T>& work, i64 n, i64 panel, i64 target, i64 first, i64 rows) {
    T* tile = panel_row(work.a, n, target, first);
    add_product<T, -1>(rows, kBand, panel_row(work.a, n, panel, first), kBand, 1,
                       work.w_blocks + target * kBand * kBand, tile);
    add_product<T, -1>(rows, kBand, work.w + first * kBand, kBand, 1, work.v_blocks + target * kBand * kBand,
                       tile);
}

// Rows first..last - 1, a tile's, of the trailing matrix of `panel`: the update by the panel before, then
// what they add to A V in y.
template <class T>
void update_and_multiply_rows(const BandWork<T>& work, i64 n, i64 panel, i64 first, i64 last, T* y) {
    for (i64 target = panel + 1; target * kBand < last; ++target) {
        const i64 diagonal = target * kBand;
        const i64 from = larger(first, diagonal);
        if (panel > 0) update_tile(work, n, panel - 1, target, from, last - from);
        const T* v = panel_row(work.a, n, panel, diagonal);
        i64 below = from;
        if (diagonal >= first) {
            // A block on the diagonal is full and symmetric.
            add_product<T, 1>(kBand, kBand, panel_row(work.a, n, target, diagonal), kBand, 1, v,
                              y + diagonal * kBand);
            below += kBand;
        }
        if (below == last) continue;
        const T* tile = panel_row(work.a, n, target, below);
        add_product<T, 1>(last - below, kBand, tile, kBand, 1, v, y + below * kBand);
        add_product<T, 1>(kBand, last - below, tile, 1, kBand, panel_row(work.a, n, panel, below),
                          y + diagonal * kBand);
    }
}

// W, V^T and W^T of the block of reflectors in `panel` from A V, in rows first..last - 1.
template <class T>
void finish_rows(const BandWork<T>& work, i64 n, i64 panel, i64 first, i64 last) {
    // m = t^T (V^T A V) t / 2
    T gram[kBand * kBand] = {}, half[kBand * kBand] = {}, m[kBand * kBand] = {};
    for (i64 s = 0; s < kBandSlices; ++s) {
        for (i64 i = 0; i < kBand * kBand; ++i) gram[i] += work.grams[s * kBand * kBand + i];
    }
    add_product<T, 1>(kBand, kBand, gram, kBand, 1, work.t, half);
    add_product<T, 1>(kBand, kBand, work.t, 1, kBand, half, m);
    for (i64 i = 0; i < kBand * kBand; ++i) m[i] /= 2;
    for (i64 i = first * kBand; i < last * kBand; ++i) work.w[i] = 0;
    add_product<T, 1>(last - first, kBand, work.y + first * kBand, kBand, 1, work.t, work.w + first * kBand);
    add_product<T, -1>(last - first, kBand, panel_row(work.a, n, panel, first), kBand, 1, m,
                       work.w + first * kBand);
    for (i64 block = first / kBand; block < last / kBand; ++block) {
        transpose_block(panel_row(work.a, n, panel, block * kBand), work.v_blocks + block * kBand * kBand);
        transpose_block(work.w + block * kBand * kBand, work.w_blocks + block * kBand * kBand);
    }
}

// Reduces the panels in work.a (n rows) to a band: its diagonal blocks stay where they are, their lower
// triangles valid, and the blocks below them are work.r. Called by every thread of the team.
template <class T>
void reduce_to_band(const BandWork<T>& work, i64 n, const ThreadTeam& team) {
    const i64 panels = n / kBand;
    // Slices of the rows, and of the tiles of rows dealt out in turn.
    const auto each_slice = [&](auto&& body) {
        for (i64 s = team.rank; s < kBandSlices; s += team.size) body(s);
    };
    const auto rows_of = [&](i64 s, i64 first) {
        const i64 blocks = n / kBand - first / kBand;
        return first + kBand * (blocks * s / kBandSlices);
    };
    for (i64 panel = 0; panel < panels; ++panel) {
        const i64 first = panel * kBand, trailing = first + kBand;
        if (panel > 0) {
            each_slice([&](i64 s) {
                const i64 begin = rows_of(s, first), end = rows_of(s + 1, first);
                if (begin < end) update_tile(work, n, panel - 1, panel, begin, end - begin);
            });
            team.wait();
        }
        if (trailing == n) break;
        if (team.rank == 0) {
            panel_qr(panel_row(work.a, n, panel, trailing), n - trailing, work.r + panel * kBand * kBand);
            block_factor(panel_row(work.a, n, panel, trailing), n - trailing, work.t);
        }
        team.wait();
        each_slice([&](i64 s) {
            T* y = work.y + s * n * kBand;
            for (i64 i = trailing * kBand; i < n * kBand; ++i) y[i] = 0;
            for (i64 begin = trailing + s * kBandRowsPerTile; begin < n;
                 begin += kBandSlices * kBandRowsPerTile) {
                update_and_multiply_rows(work, n, panel, begin, smaller(begin + kBandRowsPerTile, n), y);
            }
        });
        team.wait();
        each_slice([&](i64 s) {
            const i64 begin = rows_of(s, trailing), end = rows_of(s + 1, trailing);
            for (i64 part = 1; part < kBandSlices; ++part) {
                const T* y = work.y + part * n * kBand;
                for (i64 i = begin * kBand; i < end * kBand; ++i) work.y[i] += y[i];
            }
            T* gram = work.grams + s * kBand * kBand;
            for (i64 i = 0; i < kBand * kBand; ++i) gram[i] = 0;
            if (begin == end) return;
            add_product<T, 1>(kBand, end - begin, panel_row(work.a, n, panel, begin), 1, kBand,
                              work.y + begin * kBand, gram);
        });
        team.wait();
        each_slice([&](i64 s) {
            const i64 begin = rows_of(s, trailing), end = rows_of(s + 1, trailing);
            if (begin < end) finish_rows(work, n, panel, begin, end);
        });
        team.wait();
    }
}

}  // namespace slimfast::SLIMFAST_ISA
