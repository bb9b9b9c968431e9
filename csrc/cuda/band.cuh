// Two stages for large matrices: what the reduction to a band and the chase of the bulges work with.
//
// The lower triangle lies in the panels of band_panels.hpp. One that is done holds V, the vectors of its
// reflectors, below its block on the diagonal.
#pragma once

#include "../common/band_panels.hpp"
#include "eigvalsh.hpp"
#include "launch.cuh"

namespace slimfast::cuda {

// A column of the band: the diagonal and what is below it, with room for the bulges.
inline constexpr int kBandColumn = 2 * kBand;
// Rows of the sums over A V that one block forms.
inline constexpr int kProductRows = 64;

// The side of the tiles of A that a block multiplies at a time, and of the larger ones that it works through.
template <class T>
inline constexpr int kTile = sizeof(T) == 8 ? 32 : 64;
inline constexpr int kSuperTile = 128;

SLIMFAST_COMMON i64 padded_size(i64 m) { return round_up(m, kBand); }

// One matrix' part of the workspace.
template <class T>
struct BandMemory {
    i64 n;
    double* undo;     // what leads from the scaled eigenvalues back to the matrix'
    double* largest;  // (n / kBand,) the largest entry of each kBand rows
    T* a;             // the panels
    T* w;             // (n, kBand) W of the last panel
    T* products;      // (super tiles, n, kBand) parts of A V; the first becomes their sum
    T* grams;         // (n / kProductRows, kBand, kBand) parts of V^T A V
    T* factor;        // (kBand, kBand) t of the last panel: its reflectors' product is I - V t V^T
    T* band;          // (n + kBandColumn, kBandColumn): element (i, j) at j kBandColumn + i - j

    SLIMFAST_COMMON BandMemory(unsigned char* memory, i64 m)
        : n(padded_size(m)),
          undo(reinterpret_cast<double*>(memory)),
          largest(undo + 1),
          // An even number of float64 keeps the rest 16-byte aligned.
          a(reinterpret_cast<T*>(largest + n / kBand + (n / kBand + 1) % 2)),
          w(a + panel_elements(n)),
          products(w + n * kBand),
          grams(products + ceil_div(n, kSuperTile) * n * kBand),
          factor(grams + ceil_div(n, kProductRows) * kBand * kBand),
          band(factor + kBand * kBand) {}
    __device__ explicit BandMemory(const i64* layer)
        : BandMemory(reinterpret_cast<unsigned char*>(layer[kEigStorage]), layer[kEigSize]) {}

    // Row `row` of a panel.
    __device__ T* panel_row(i64 panel, i64 row) const {
        return a + panel_start(n, panel) + (row - kBand * panel) * kBand;
    }
    __device__ T* band_column(i64 column) const { return band + column * kBandColumn; }

    static std::size_t bytes(i64 m) {
        // Any address will do.
        auto* const start = reinterpret_cast<unsigned char*>(16);
        const BandMemory memory(start, m);
        const T* const end = memory.band + (memory.n + kBandColumn) * kBandColumn;
        return static_cast<std::size_t>(reinterpret_cast<const unsigned char*>(end) - start);
    }
};

// The launches of reduce_to_band, for the first `count` of the layers; `largest` is the largest m among them.
struct BandLaunch {
    Stream stream;
    const i64* layers;
    i64 count;
    i64 largest;
    bool is_double;
};

// The panels, scaled, and a band of zeros.
void pack_panels(const BandLaunch& to);
// Applies the reflectors of the panel before to `panel`, puts its part of the band there, and factors the
// rest: V and t. `cluster` blocks to each matrix.
void factor_panel(const BandLaunch& to, i64 panel, unsigned cluster);
// Applies the reflectors of the panel before to what follows `panel`, and forms the parts of A V.
void multiply_trailing(const BandLaunch& to, i64 panel);
// Forms W of `panel` from them, and applies the reflectors of `panel` to the next one.
void finish_panel(const BandLaunch& to, i64 panel);

}  // namespace slimfast::cuda
