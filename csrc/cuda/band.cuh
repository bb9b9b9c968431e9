// Two stages for large matrices: what the reduction to a band and the chase of the bulges work with.
//
// The lower triangle lies in panels of kBand columns: panel j holds rows j kBand .. n - 1, row after row,
// kBand entries each. n is m rounded up to a multiple of kBand; rows beyond the matrix are zero and stay so.
// A panel that is done holds V, the vectors of its reflectors, below its block on the diagonal.
#pragma once

#include "eigvalsh.hpp"
#include "launch.cuh"

namespace slimfast::cuda {

inline constexpr int kBand = 32;
// A column of the band: the diagonal and what is below it, with room for the bulges.
inline constexpr int kBandColumn = 2 * kBand;
// Rows of the sums over A V that one block forms.
inline constexpr int kProductRows = 64;

// The side of the tiles of A that a block multiplies at a time, and of the larger ones that it works through.
template <class T>
inline constexpr int kTile = sizeof(T) == 8 ? 32 : 64;
inline constexpr int kSuperTile = 128;

__host__ __device__ inline std::int64_t blocks_of(std::int64_t count, std::int64_t block) {
    return (count + block - 1) / block;
}
__host__ __device__ inline std::int64_t padded_size(std::int64_t m) { return blocks_of(m, kBand) * kBand; }

// Where row kBand j of panel j starts.
__host__ __device__ inline std::int64_t panel_start(std::int64_t n, std::int64_t panel) {
    return kBand * (n * panel - kBand * (panel * (panel - 1) / 2));
}

// One matrix' part of the workspace.
template <class T>
struct BandMemory {
    std::int64_t n;
    double* undo;     // what leads from the scaled eigenvalues back to the matrix'
    double* largest;  // (n / kBand,) the largest entry of each kBand rows
    T* a;             // the panels
    T* w;             // (n, kBand) W of the last panel
    T* products;      // (super tiles, n, kBand) parts of A V; the first becomes their sum
    T* grams;         // (n / kProductRows, kBand, kBand) parts of V^T A V
    T* factor;        // (kBand, kBand) t of the last panel: its reflectors' product is I - V t V^T
    T* band;          // (n + kBandColumn, kBandColumn): element (i, j) at j kBandColumn + i - j

    __host__ __device__ BandMemory(unsigned char* memory, std::int64_t m)
        : n(padded_size(m)),
          undo(reinterpret_cast<double*>(memory)),
          largest(undo + 1),
          // An even number of float64 keeps the rest 16-byte aligned.
          a(reinterpret_cast<T*>(largest + n / kBand + (n / kBand + 1) % 2)),
          w(a + panel_start(n, n / kBand)),
          products(w + n * kBand),
          grams(products + blocks_of(n, kSuperTile) * n * kBand),
          factor(grams + blocks_of(n, kProductRows) * kBand * kBand),
          band(factor + kBand * kBand) {}
    __device__ explicit BandMemory(const std::int64_t* layer)
        : BandMemory(reinterpret_cast<unsigned char*>(layer[kEigStorage]), layer[kEigSize]) {}

    // Row `row` of a panel.
    __device__ T* panel_row(std::int64_t panel, std::int64_t row) const {
        return a + panel_start(n, panel) + (row - kBand * panel) * kBand;
    }
    __device__ T* band_column(std::int64_t column) const { return band + column * kBandColumn; }

    static std::size_t bytes(std::int64_t m) {
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
    const std::int64_t* layers;
    std::int64_t count;
    std::int64_t largest;
    bool is_double;
};

// The panels, scaled, and a band of zeros.
void pack_panels(const BandLaunch& to);
// Applies the reflectors of the panel before to `panel`, puts its part of the band there, and factors the
// rest: V and t. `cluster` blocks to each matrix.
void factor_panel(const BandLaunch& to, std::int64_t panel, unsigned cluster);
// Applies the reflectors of the panel before to what follows `panel`, and forms the parts of A V.
void multiply_trailing(const BandLaunch& to, std::int64_t panel);
// Forms W of `panel` from them, and applies the reflectors of `panel` to the next one.
void finish_panel(const BandLaunch& to, std::int64_t panel);

}  // namespace slimfast::cuda
