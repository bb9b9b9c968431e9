// Stage one of two for large matrices: reduction of a symmetric matrix to a band by blocks of reflectors.
//
// A block of `band` reflectors Q = I - V T V^T changes the trailing matrix A to A - V W^T - W V^T, where
// W = A V T - V T^T V^T A V T / 2 (Bischof, Lang, Sun, "A framework for symmetric band reduction", ACM TOMS
// 26, 2000). A V of one block and the update by the block before go over A in the same pass, tile by tile, so
// that A is read and written once per `band` columns, at the rate of a matrix product.
#pragma once

#include "../common/band_panels.hpp"
#include "kernels.hpp"
#include "simd.hpp"

namespace slimfast::SLIMFAST_ISA {

constexpr i64 band = kBand;

// Row `row` of a panel, see band_panels.hpp.
template <class T>
SLIMFAST_INLINE T* panel_row(T* a, i64 n, i64 panel, i64 row) {
    return a + panel_start(n, panel) + (row - band * panel) * band;
}

// The register tile of products with `band` columns.
template <class T>
struct BandTile {
    static constexpr int all = band / lanes<T>;
    static constexpr int vectors = all < 4 ? all : 4;
    static constexpr int rows = (SLIMFAST_REGISTERS - 4) / vectors;
};

// c (rows, vectors lanes) += sign sum over k of a[row, k] b[k, :]; b and c have `band` columns.
template <class T, int rows, int sign>
SLIMFAST_INLINE void band_tile(i64 terms, const T* a, i64 row_stride, i64 term_stride, const T* b, T* c) {
    constexpr int vectors = BandTile<T>::vectors;
    Vec<T> sum[rows][vectors];
    for (int r = 0; r < rows; ++r) {
        for (int j = 0; j < vectors; ++j) sum[r][j] = Vec<T>{};
    }
    for (i64 k = 0; k < terms; ++k) {
        Vec<T> factor[rows];
        for (int r = 0; r < rows; ++r) factor[r] = splat(a[r * row_stride + k * term_stride]);
        for (int j = 0; j < vectors; ++j) {
            const Vec<T> value = load(b + k * band + j * lanes<T>);
            for (int r = 0; r < rows; ++r) sum[r][j] += factor[r] * value;
        }
    }
    for (int r = 0; r < rows; ++r) {
        for (int j = 0; j < vectors; ++j) {
            T* at = c + r * band + j * lanes<T>;
            store(at, sign > 0 ? load(at) + sum[r][j] : load(at) - sum[r][j]);
        }
    }
}

template <class T, int rows, int sign>
void band_rows(i64 count, i64 terms, const T* a, i64 row_stride, i64 term_stride, const T* b, T* c) {
    constexpr int width = BandTile<T>::vectors * lanes<T>;
    i64 r = 0;
    for (; r + rows <= count; r += rows) {
        for (i64 j = 0; j < band; j += width) {
            band_tile<T, rows, sign>(terms, a + r * row_stride, row_stride, term_stride, b + j,
                                     c + r * band + j);
        }
    }
    if constexpr (rows > 1) {
        if (r < count) {
            band_rows<T, rows / 2, sign>(count - r, terms, a + r * row_stride, row_stride, term_stride, b,
                                         c + r * band);
        }
    }
}

// c (count, band) += sign a b, where a is (count, terms) with any strides and b (terms, band).
template <class T, int sign>
SLIMFAST_INLINE void add_product(i64 count, i64 terms, const T* a, i64 row_stride, i64 term_stride,
                                 const T* b, T* c) {
    // A short sum at a time: many terms one after another would lose more.
    constexpr i64 most = 3 * band;
    for (i64 k = 0; k < terms; k += most) {
        band_rows<T, BandTile<T>::rows, sign>(count, smaller(most, terms - k), a + k * term_stride,
                                              row_stride, term_stride, b + k * band, c);
    }
}

// to (band, band) = from^T.
template <class T>
void transpose_block(const T* from, T* to) {
    constexpr i64 v = lanes<T>;
    for (i64 r = 0; r < band; r += v) {
        for (i64 c = 0; c < band; c += v) {
            Vec<T> rows[v];
            for (i64 i = 0; i < v; ++i) rows[i] = load(from + (r + i) * band + c);
            transpose<T>(rows);
            for (i64 i = 0; i < v; ++i) store(to + (c + i) * band + r, rows[i]);
        }
    }
}

// QR of a panel x (rows, band) of at least `band` rows: x becomes V, its columns scaled so that every
// reflector is I - v v^T, and r (band, band) the triangular factor.
//
// One pass a column: it applies the reflector of the column before and sums the products that the next one
// needs, sixteen rows at a time and those in turn, so that long sums lose no more than short ones.
template <class T>
void panel_qr(T* x, i64 rows, T* r) {
    constexpr int vectors = band / lanes<T>;
    constexpr i64 group = 16;
    T products[band], weights[band];
    double square = 0;
    for (i64 i = 0; i < band * band; ++i) r[i] = 0;
    for (i64 c = -1; c < band; ++c) {
        // The reflector of column c from the products of that column with itself and those to its right.
        T beta = 0, scale = 0, head = 0;
        if (c >= 0) {
            head = x[c * band + c];
            beta = head;
            // Whatever lies below the head: next to a large one its squares are lost in the sum, so that a
            // column with nothing below is reflected too, which turns its sign.
            if (square > Float<T>::kNegligibleSquare) {
                const double norm = square_root(square);
                const double reflected = head > 0 ? -norm : norm;
                beta = static_cast<T>(reflected);
                scale = static_cast<T>(1.0 / square_root(reflected * (reflected - head)));
            }
            T* row = x + c * band;
            const T first = (head - beta) * scale;
            for (i64 j = 0; j < band; ++j) {
                weights[j] = j > c ? scale * (products[j] - beta * row[j]) : T{0};
                r[c * band + j] = j < c ? T{0} : j == c ? beta : row[j] - first * weights[j];
                if (j >= c) row[j] = j == c ? first : T{0};
            }
        } else {
            for (i64 j = 0; j < band; ++j) weights[j] = 0;
        }
        const i64 next = c + 1;
        Vec<T> total[vectors], weight[vectors];
        Mask<T> own[vectors] = {};
        for (int j = 0; j < vectors; ++j) {
            total[j] = Vec<T>{};
            weight[j] = load(weights + j * lanes<T>);
            for (int l = 0; l < lanes<T>; ++l) own[j][l] = j * lanes<T> + l == c ? -1 : 0;
        }
        square = 0;
        for (i64 begin = next; begin < rows; begin += group) {
            Vec<T> sum[vectors];
            for (int j = 0; j < vectors; ++j) sum[j] = Vec<T>{};
            const i64 end = smaller(begin + group, rows);
            for (i64 i = begin; i < end; ++i) {
                T* row = x + i * band;
                Vec<T> value[vectors];
                for (int j = 0; j < vectors; ++j) value[j] = load(row + j * lanes<T>);
                if (c >= 0) {
                    const Vec<T> u = splat(row[c] * scale);
                    for (int j = 0; j < vectors; ++j) {
                        value[j] = own[j] ? u : value[j] - u * weight[j];
                        store(row + j * lanes<T>, value[j]);
                    }
                }
                if (next == band) continue;
                const T lead = row[next];
                for (int j = 0; j < vectors; ++j) sum[j] += lead * value[j];
            }
            for (int j = 0; j < vectors; ++j) {
                total[j] += sum[j];
                store(products + j * lanes<T>, sum[j]);
            }
            if (next < band) square += products[next];
        }
        for (int j = 0; j < vectors; ++j) store(products + j * lanes<T>, total[j]);
    }
}

// t (band, band) such that the product of the reflectors is I - V t V^T, for reflectors I - v v^T: the
// inverse of the unit upper triangle of V^T V.
template <class T>
void block_factor(const T* v, i64 rows, T* t) {
    T gram[band * band] = {};
    add_product<T, 1>(band, rows, v, 1, band, v, gram);
    for (i64 i = 0; i < band * band; ++i) t[i] = 0;
    for (i64 j = 0; j < band; ++j) {
        for (i64 i = 0; i < j; ++i) {
            T sum = 0;
            for (i64 k = i; k < j; ++k) sum += t[i * band + k] * gram[k * band + j];
            t[i * band + j] = -sum;
        }
        t[j * band + j] = 1;
    }
}

// All that the reduction of one matrix of n rows works with; shared by the threads of a team.
template <class T>
struct BandWork {
    T* a;         // panel_elements(n)
    T* w;         // (n, band)
    T* v_blocks;  // (n / band) blocks (band, band): V^T of the block of reflectors before, and W^T
    T* w_blocks;
    T* y;      // (band_slices, n, band): parts of A V
    T* grams;  // (band_slices, band, band): parts of V^T A V
    T* r;      // (n / band) blocks: the triangular factors below the diagonal
    T* t;      // (band, band)
};

// Parts of a sum that threads form at once; fixed, so that the result does not depend on how many there are.
constexpr i64 band_slices = 8;
// Rows of a tile of A: with what it is multiplied by, it stays in L2.
constexpr i64 band_rows_per_tile = 3 * band;

template <class T>
constexpr i64 band_work_elements(i64 n) {
    return panel_elements(n) + n * band * (4 + band_slices) + (band_slices + 1) * band * band;
}

template <class T>
BandWork<T> band_work(T* memory, i64 n) {
    BandWork<T> work;
    work.a = memory;
    work.w = work.a + panel_elements(n);
    work.v_blocks = work.w + n * band;
    work.w_blocks = work.v_blocks + n * band;
    work.r = work.w_blocks + n * band;
    work.y = work.r + n * band;
    work.grams = work.y + band_slices * n * band;
    work.t = work.grams + band_slices * band * band;
    return work;
}

// Subtracts V W^T + W V^T of the block of reflectors in `panel` from rows first..first + rows - 1 of the
// columns of `target`.
template <class T>
void update_tile(const BandWork<T>& work, i64 n, i64 panel, i64 target, i64 first, i64 rows) {
    T* tile = panel_row(work.a, n, target, first);
    add_product<T, -1>(rows, band, panel_row(work.a, n, panel, first), band, 1,
                       work.w_blocks + target * band * band, tile);
    add_product<T, -1>(rows, band, work.w + first * band, band, 1, work.v_blocks + target * band * band,
                       tile);
}

// Rows first..last - 1, a tile's, of the trailing matrix of `panel`: the update by the panel before, then
// what they add to A V in y.
template <class T>
void update_and_multiply_rows(const BandWork<T>& work, i64 n, i64 panel, i64 first, i64 last, T* y) {
    for (i64 target = panel + 1; target * band < last; ++target) {
        const i64 diagonal = target * band;
        const i64 from = larger(first, diagonal);
        if (panel > 0) update_tile(work, n, panel - 1, target, from, last - from);
        const T* v = panel_row(work.a, n, panel, diagonal);
        i64 below = from;
        if (diagonal >= first) {
            // A block on the diagonal is full and symmetric.
            add_product<T, 1>(band, band, panel_row(work.a, n, target, diagonal), band, 1, v,
                              y + diagonal * band);
            below += band;
        }
        if (below == last) continue;
        const T* tile = panel_row(work.a, n, target, below);
        add_product<T, 1>(last - below, band, tile, band, 1, v, y + below * band);
        add_product<T, 1>(band, last - below, tile, 1, band, panel_row(work.a, n, panel, below),
                          y + diagonal * band);
    }
}

// W, V^T and W^T of the block of reflectors in `panel` from A V, in rows first..last - 1.
template <class T>
void finish_rows(const BandWork<T>& work, i64 n, i64 panel, i64 first, i64 last) {
    // m = t^T (V^T A V) t / 2
    T gram[band * band] = {}, half[band * band] = {}, m[band * band] = {};
    for (i64 s = 0; s < band_slices; ++s) {
        for (i64 i = 0; i < band * band; ++i) gram[i] += work.grams[s * band * band + i];
    }
    add_product<T, 1>(band, band, gram, band, 1, work.t, half);
    add_product<T, 1>(band, band, work.t, 1, band, half, m);
    for (i64 i = 0; i < band * band; ++i) m[i] /= 2;
    for (i64 i = first * band; i < last * band; ++i) work.w[i] = 0;
    add_product<T, 1>(last - first, band, work.y + first * band, band, 1, work.t, work.w + first * band);
    add_product<T, -1>(last - first, band, panel_row(work.a, n, panel, first), band, 1, m,
                       work.w + first * band);
    for (i64 block = first / band; block < last / band; ++block) {
        transpose_block(panel_row(work.a, n, panel, block * band), work.v_blocks + block * band * band);
        transpose_block(work.w + block * band * band, work.w_blocks + block * band * band);
    }
}

// Reduces the panels in work.a (n rows) to a band: its diagonal blocks stay where they are, their lower
// triangles valid, and the blocks below them are work.r. Called by every thread of the team.
template <class T>
void reduce_to_band(const BandWork<T>& work, i64 n, const Team& team) {
    const i64 panels = n / band;
    // Slices of the rows, and of the tiles of rows dealt out in turn.
    const auto each_slice = [&](auto&& body) {
        for (i64 s = team.rank; s < band_slices; s += team.size) body(s);
    };
    const auto rows_of = [&](i64 s, i64 first) {
        const i64 blocks = n / band - first / band;
        return first + band * (blocks * s / band_slices);
    };
    for (i64 panel = 0; panel < panels; ++panel) {
        const i64 first = panel * band, trailing = first + band;
        if (panel > 0) {
            each_slice([&](i64 s) {
                const i64 begin = rows_of(s, first), end = rows_of(s + 1, first);
                if (begin < end) update_tile(work, n, panel - 1, panel, begin, end - begin);
            });
            team.wait();
        }
        if (trailing == n) break;
        if (team.rank == 0) {
            panel_qr(panel_row(work.a, n, panel, trailing), n - trailing, work.r + panel * band * band);
            block_factor(panel_row(work.a, n, panel, trailing), n - trailing, work.t);
        }
        team.wait();
        each_slice([&](i64 s) {
            T* y = work.y + s * n * band;
            for (i64 i = trailing * band; i < n * band; ++i) y[i] = 0;
            for (i64 begin = trailing + s * band_rows_per_tile; begin < n;
                 begin += band_slices * band_rows_per_tile) {
                update_and_multiply_rows(work, n, panel, begin, smaller(begin + band_rows_per_tile, n), y);
            }
        });
        team.wait();
        each_slice([&](i64 s) {
            const i64 begin = rows_of(s, trailing), end = rows_of(s + 1, trailing);
            for (i64 part = 1; part < band_slices; ++part) {
                const T* y = work.y + part * n * band;
                for (i64 i = begin * band; i < end * band; ++i) work.y[i] += y[i];
            }
            T* gram = work.grams + s * band * band;
            for (i64 i = 0; i < band * band; ++i) gram[i] = 0;
            if (begin == end) return;
            add_product<T, 1>(band, end - begin, panel_row(work.a, n, panel, begin), 1, band,
                              work.y + begin * band, gram);
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
