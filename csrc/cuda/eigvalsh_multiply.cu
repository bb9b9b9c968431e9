// One pass over what follows a panel in the reduction to a band: A becomes A - V W^T - W V^T of the panel
// before, tile by tile, and each tile is multiplied by V of this panel while it is at hand.
#include "band.cuh"
#include "mma.cuh"
#include "packed.cuh"
#include "triangle.cuh"

namespace slimfast::cuda {
namespace {

// Traits.

constexpr int kWarps = 4;
constexpr unsigned kThreads = kWarps * 32;

// A tile has kTile rows and columns, and its columns are dealt out to the warps. Rows in shared memory are 16
// bytes longer, which spreads them over the banks.
template <class T>
struct TileTraits {
    static constexpr int kPadding = 16 / static_cast<int>(sizeof(T));
    static constexpr int kSide = kTile<T>;
    static constexpr int kColumns = kSide / kWarps;
    static constexpr int kStride = kBand + kPadding;
    static constexpr int kStageStride = kColumns + kPadding;
    static constexpr int kRowParts = kSide / kMmaRows;
    static constexpr int kColumnParts = kColumns / kMmaColumns;
    static constexpr int kBandRows = kBand / kMmaRows;
    static constexpr int kBandColumns = kBand / kMmaColumns;
};

// Rows of V and W of the panel before and of V of this panel.
template <class T>
struct Reflectors {
    alignas(16) T old_v[kTile<T>][TileTraits<T>::kStride];
    T old_w[kTile<T>][TileTraits<T>::kStride];
    T v[kTile<T>][TileTraits<T>::kStride];
};

template <class T>
struct MultiplyShared {
    Reflectors<T> rows, columns;
    // Each warp's columns of the tile, to be read the other way round.
    T stage[kWarps][kTile<T>][TileTraits<T>::kStageStride];
    // A V by columns of the super tile: rows of the transposed tiles.
    T by_columns[kSuperTile][TileTraits<T>::kStride];
};

// Kernels.

// One super tile (I, J), J <= I, of the trailing matrix: its part of A V for the rows of I and, transposed,
// for those of J. Tiles follow row by row; the part of a tile's rows stays in registers.
template <class T>
class SuperTile {
    using Traits = TileTraits<T>;
    static constexpr int kSide = Traits::kSide;
    static constexpr int kStride = Traits::kStride;

    // What a lane holds of its warp's columns of a tile.
    struct Values {
        MmaSum<T> sum[Traits::kRowParts][Traits::kColumnParts];
    };
    struct alignas(2 * sizeof(T)) Pair {
        T x[2];
    };

  public:
    __device__ SuperTile(const BandMemory<T>& memory, int panel, int row_block, int column_block)
        : memory_(memory),
          shared_(*reinterpret_cast<MultiplyShared<T>*>(shared_memory())),
          panel_(panel),
          n_(static_cast<int>(memory.n)),
          row_begin_((panel + 1) * kBand + row_block * kSuperTile),
          column_begin_((panel + 1) * kBand + column_block * kSuperTile),
          row_block_(row_block),
          column_block_(column_block) {}

    __device__ void run() {
        T* const sums = &shared_.by_columns[0][0];
        for (int i = static_cast<int>(threadIdx.x); i < kSuperTile * kStride; i += kThreads) sums[i] = T{0};
        const bool diagonal = row_block_ == column_block_;
        for (int row = 0; row < kSuperTile && row_begin_ + row < n_; row += kSide) {
            load_reflectors(shared_.rows, row_begin_ + row);
            MmaSum<T> product[Traits::kRowParts][Traits::kBandColumns] = {};
            for (int column = 0; column < (diagonal ? row + kSide : kSuperTile); column += kSide) {
                __syncthreads();
                load_reflectors(shared_.columns, column_begin_ + column);
                __syncthreads();
                multiply_tile(row_begin_ + row, column_begin_ + column, column, product);
            }
            __syncthreads();
            // The warps add in turn, where the columns' V is not needed any more.
            T* const total = diagonal ? shared_.by_columns[row] : &shared_.columns.v[0][0];
            for (int warp = 0; warp < kWarps; ++warp) {
                if (warp == warp_index()) add_product(product, total, diagonal || warp > 0);
                __syncthreads();
            }
            if (!diagonal) store(total, column_block_, row_begin_ + row, kSide);
        }
        store(sums, row_block_, column_begin_, kSuperTile);
    }

  private:
    __device__ void load_reflectors(Reflectors<T>& to, int first) const {
        load_rows(to.v, memory_.panel_row(panel_, first), first);
        if (panel_ == 0) return;
        load_rows(to.old_v, memory_.panel_row(panel_ - 1, first), first);
        load_rows(to.old_w, memory_.w + i64{first} * kBand, first);
    }
    __device__ void load_rows(T (&to)[kTile<T>][kStride], const T* from, int first) const {
#pragma unroll
        for (int i = static_cast<int>(threadIdx.x) * kBlock; i < kSide * kBand; i += kThreads * kBlock) {
            const int row = i / kBand;
            *reinterpret_cast<Quad<T>*>(&to[row][i % kBand]) =
                first + row < n_ ? *reinterpret_cast<const Quad<T>*>(from + i) : Quad<T>{};
        }
    }

    // The update of the tile that starts at (first_row, first_column), and what it adds to A V.
    __device__ void multiply_tile(int first_row, int first_column, int column,
                                  MmaSum<T> (&product)[Traits::kRowParts][Traits::kBandColumns]) {
        const bool diagonal = first_row == first_column;
        const int mine = warp_index() * Traits::kColumns;
        Values change{};
        if (panel_ > 0) {
            add_outer(change, shared_.rows.old_v, shared_.columns.old_w[mine]);
            add_outer(change, shared_.rows.old_w, shared_.columns.old_v[mine]);
        }
        Values a;
        load_tile(a, first_row, first_column + mine, diagonal);
        if (panel_ > 0) {
            // The upper half of a tile on the diagonal is other warps' lower half, as it was.
            if (diagonal) __syncthreads();
            each([&](int r, int c, int half) {
                a.sum[r][c].x[2 * half] -= change.sum[r][c].x[2 * half];
                a.sum[r][c].x[2 * half + 1] -= change.sum[r][c].x[2 * half + 1];
            });
            store_tile(a, first_row, first_column + mine, diagonal);
        }
#pragma unroll
        for (int part = 0; part < Traits::kColumnParts; ++part) {
            MmaRight<T> v[Traits::kBandColumns];
#pragma unroll
            for (int b = 0; b < Traits::kBandColumns; ++b)
                v[b] = load_right(&shared_.columns.v[mine + part * kMmaDepth][b * kMmaColumns], kStride, 1);
#pragma unroll
            for (int r = 0; r < Traits::kRowParts; ++r) {
                const MmaLeft<T> left = left_factor(a.sum[r][part]);
#pragma unroll
                for (int b = 0; b < Traits::kBandColumns; ++b) multiply_add(product[r][b], left, v[b]);
            }
        }
        // A tile on the diagonal is whole; the others stand for their transposed ones too.
        if (!diagonal) multiply_transposed(a, column + mine);
    }

    // change += left right^T for this warp's columns.
    __device__ static void add_outer(Values& change, const T (&left)[kTile<T>][kStride],
                                     const T (&right)[kStride]) {
#pragma unroll 1
        for (int k = 0; k < kBand; k += kMmaDepth) {
            MmaRight<T> columns[Traits::kColumnParts];
#pragma unroll
            for (int c = 0; c < Traits::kColumnParts; ++c)
                columns[c] = load_right(right + c * kMmaColumns * kStride + k, 1, kStride);
#pragma unroll
            for (int r = 0; r < Traits::kRowParts; ++r) {
                const MmaLeft<T> rows = load_left(&left[r * kMmaRows][k], kStride, 1);
#pragma unroll
                for (int c = 0; c < Traits::kColumnParts; ++c)
                    multiply_add(change.sum[r][c], rows, columns[c]);
            }
        }
    }

    // by_columns += (V^T of the rows, times the tile)^T for this warp's columns, which no other warp touches.
    __device__ void multiply_transposed(const Values& a, int column) {
        T(&stage)[kTile<T>][Traits::kStageStride] = shared_.stage[warp_index()];
        each([&](int r, int c, int half) {
            T* at = &stage[row_in_tile(r, half)][c * kMmaColumns + mma_pair()];
            at[0] = a.sum[r][c].x[2 * half];
            at[1] = a.sum[r][c].x[2 * half + 1];
        });
        __syncwarp();
        MmaSum<T> product[Traits::kBandRows][Traits::kColumnParts] = {};
#pragma unroll 1
        for (int k = 0; k < kSide; k += kMmaDepth) {
            MmaRight<T> columns[Traits::kColumnParts];
#pragma unroll
            for (int c = 0; c < Traits::kColumnParts; ++c)
                columns[c] = load_right(&stage[k][c * kMmaColumns], Traits::kStageStride, 1);
#pragma unroll
            for (int b = 0; b < Traits::kBandRows; ++b) {
                const MmaLeft<T> v = load_left(&shared_.rows.v[k][b * kMmaRows], 1, kStride);
#pragma unroll
                for (int c = 0; c < Traits::kColumnParts; ++c) multiply_add(product[b][c], v, columns[c]);
            }
        }
#pragma unroll
        for (int b = 0; b < Traits::kBandRows; ++b) {
#pragma unroll
            for (int c = 0; c < Traits::kColumnParts; ++c) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        shared_.by_columns[column + c * kMmaColumns + mma_pair() + i]
                                          [b * kMmaRows + 8 * half + mma_group()] +=
                            product[b][c].x[2 * half + i];
                    }
                }
            }
        }
    }

    // Calls action(r, c, half) for the pairs of neighbours in a lane's values.
    template <class Action>
    __device__ static void each(Action action) {
#pragma unroll
        for (int r = 0; r < Traits::kRowParts; ++r) {
#pragma unroll
            for (int c = 0; c < Traits::kColumnParts; ++c) {
#pragma unroll
                for (int half = 0; half < 2; ++half) action(r, c, half);
            }
        }
    }
    __device__ static int row_in_tile(int r, int half) { return r * kMmaRows + 8 * half + mma_group(); }

    // Where a tile's row `first_row` is, from `first_column` on: a warp's columns lie in one panel.
    __device__ T* tile_at(int first_row, int first_column) const {
        return memory_.panel_row(first_column / kBand, first_row) + first_column % kBand;
    }
    // This warp's columns of a tile, from `first_column` on: of one on the diagonal the upper half too.
    __device__ void load_tile(Values& a, int first_row, int first_column, bool diagonal) const {
        const T* const tile = tile_at(first_row, first_column);
        each([&](int r, int c, int half) {
            const int row = row_in_tile(r, half);
            const int column = c * kMmaColumns + mma_pair();
            Pair pair{};
            if (!diagonal) {
                if (first_row + row < n_) pair = *reinterpret_cast<const Pair*>(tile + row * kBand + column);
            } else {
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const int low = min(first_row + row, first_column + column + i);
                    const int high = max(first_row + row, first_column + column + i);
                    if (high < n_) pair.x[i] = memory_.panel_row(low / kBand, high)[low % kBand];
                }
            }
            a.sum[r][c].x[2 * half] = pair.x[0];
            a.sum[r][c].x[2 * half + 1] = pair.x[1];
        });
    }
    // The lower half of it back.
    __device__ void store_tile(const Values& a, int first_row, int first_column, bool diagonal) {
        T* const tile = tile_at(first_row, first_column);
        each([&](int r, int c, int half) {
            const int row = row_in_tile(r, half);
            const int column = c * kMmaColumns + mma_pair();
            const int below = first_row + row - (first_column + column);
            if (first_row + row >= n_ || (diagonal && below < 0)) return;
            const T* const value = a.sum[r][c].x + 2 * half;
            if (!diagonal || below > 0) {
                *reinterpret_cast<Pair*>(tile + row * kBand + column) = {value[0], value[1]};
            } else {
                tile[row * kBand + column] = value[0];
            }
        });
    }

    // total += product of this warp, or = where it is the first to come.
    __device__ static void add_product(const MmaSum<T> (&product)[Traits::kRowParts][Traits::kBandColumns],
                                       T* total, bool add) {
#pragma unroll
        for (int r = 0; r < Traits::kRowParts; ++r) {
#pragma unroll
            for (int b = 0; b < Traits::kBandColumns; ++b) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    T* const at = total + row_in_tile(r, half) * kStride + b * kMmaColumns + mma_pair();
                    at[0] = (add ? at[0] : T{0}) + product[r][b].x[2 * half];
                    at[1] = (add ? at[1] : T{0}) + product[r][b].x[2 * half + 1];
                }
            }
        }
    }

    // The part of A V that comes from the super tiles of `block`, for `count` rows.
    __device__ void store(const T* from, int block, int first, int count) const {
        T* to = memory_.products + (block * memory_.n + first) * kBand;
        for (int i = static_cast<int>(threadIdx.x); i < count * kBand && first + i / kBand < n_;
             i += kThreads)
            to[i] = from[i / kBand * kStride + i % kBand];
    }

    const BandMemory<T>& memory_;
    MultiplyShared<T>& shared_;
    const int panel_, n_, row_begin_, column_begin_, row_block_, column_block_;
};

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    multiply_tiles(const i64* __restrict__ layers, int panel, int tiles) {
    const BandMemory<T> memory(layers + i64{blockIdx.x / tiles} * kEigFields);
    const auto [row_block, column_block] = triangle_tile<float>(static_cast<int>(blockIdx.x % tiles));
    if ((panel + 1) * kBand + row_block * kSuperTile >= memory.n) return;
    SuperTile<T>(memory, panel, row_block, column_block).run();
}

template <class T>
void launch_multiply(const BandLaunch& to, i64 panel) {
    const i64 side = ceil_div(padded_size(to.largest) - (panel + 1) * kBand, kSuperTile);
    const i64 tiles = triangle_size(side);
    launch("eigvalsh_multiply", multiply_tiles<T>, to.stream,
           Shape{to.count * tiles, kThreads, sizeof(MultiplyShared<T>)}, to.layers, static_cast<int>(panel),
           static_cast<int>(tiles));
}

}  // namespace

// Launch.

void multiply_trailing(const BandLaunch& to, i64 panel) {
    to.is_double ? launch_multiply<double>(to, panel) : launch_multiply<float>(to, panel);
}

}  // namespace slimfast::cuda
