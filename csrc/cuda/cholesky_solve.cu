// Blocked Cholesky of damped matrices. The transposed right-hand sides are more rows of the matrix, so that
// eliminating its columns solves forward.
#include "cholesky_solve.hpp"
#include "product_tile.cuh"
#include "triangle.cuh"

namespace slimfast::cuda {
namespace {

// Traits.

constexpr unsigned kThreads = kTileThreads;
constexpr int kSide = kSolveBlock;
// 16 x 16 threads hold a block's elements in registers, every 16th row and column each.
constexpr int kLanes = 16;
constexpr int kEach = kSide / kLanes;

using Sizes = Tiling<double, kSide>;
constexpr int kOperand = kSide * Sizes::kPitch;

// One system and the part of its work that a block does.
struct Work {
    const i64* system;
    i64 part;
    i64 blocks, sides;  // of kSide: M, K
    double *factor, *squares, *unknowns;
    i64* failure;

    __device__ i64 size() const { return blocks * kSide; }
    // The block of rows and columns of the factor.
    __device__ double* tile(i64 row, i64 column) const {
        return factor + row * kSide * size() + column * kSide;
    }
    // Columns of a step that the matrix has: of the identity beyond it there is nothing to eliminate.
    __device__ int columns(i64 step) const {
        return static_cast<int>(min(i64{kSide}, system[kSolveSize] - step * kSide));
    }
    // Whether a step before this one met a minor that is not positive.
    __device__ bool failed_before(i64 step) const { return *failure != 0 && *failure <= step * kSide; }
};

__device__ inline Work find_work(const i64* systems, const i64* starts, int count) {
    const int found = find_segment(starts, count, blockIdx.x);
    const i64* system = systems + i64{found} * kSolveFields;
    return {system,
            blockIdx.x - starts[found],
            ceil_div(system[kSolveSize], kSide),
            ceil_div(system[kSolveSides], kSide),
            reinterpret_cast<double*>(system[kSolveFactor]),
            reinterpret_cast<double*>(system[kSolveSquares]),
            reinterpret_cast<double*>(system[kSolveUnknowns]),
            reinterpret_cast<i64*>(system[kSolveFailure])};
}

__device__ inline double load_number(const i64* system, SolveField field, i64 at) {
    return system[kSolveIsDouble] ? reinterpret_cast<const double*>(system[field])[at]
                                  : static_cast<double>(reinterpret_cast<const float*>(system[field])[at]);
}

__device__ inline double damping_of(const i64* system) {
    return reinterpret_cast<const double*>(system)[kSolveDamping];
}

// Tile `number` of the lower triangle of blocks first .. last - 1, then of the rows of right-hand sides.
struct TilePlace {
    i64 row, column;
};

__device__ inline TilePlace place_of(const Work& work, i64 first, i64 number) {
    const i64 side = work.blocks - first;
    if (number < triangle_size(side)) {
        const auto [row, column] = triangle_tile<double>(number);
        return {first + row, first + column};
    }
    number -= triangle_size(side);
    return {work.blocks + number / side, first + number % side};
}

// Kernels.

__global__ void __launch_bounds__(kThreads)
    load_systems(const i64* __restrict__ systems, const i64* __restrict__ starts, int count) {
    const Work work = find_work(systems, starts, count);
    const i64* system = work.system;
    const TilePlace place = place_of(work, 0, work.part);
    const i64 m = system[kSolveSize];
    double* out = work.tile(place.row, place.column);
    for (int e = static_cast<int>(threadIdx.x); e < kSide * kSide; e += kThreads) {
        const i64 row = place.row * kSide + e / kSide, column = place.column * kSide + e % kSide;
        const i64 side = row - work.size();
        double value = row == column ? 1.0 : 0.0;
        if (side < 0 && row < m && column <= row) {
            value = load_number(system, kSolveMatrix,
                                row * system[kSolveRowStride] + column * system[kSolveColumnStride]);
            if (row == column) value += damping_of(system);
        } else if (side >= 0 && side < system[kSolveSides] && column < m) {
            value =
                load_number(system, kSolveRight,
                            column * system[kSolveRightRowStride] + side * system[kSolveRightColumnStride]);
        }
        out[e / kSide * work.size() + e % kSide] = value;
    }
}

// The square on the diagonal and a block of rows below it, column by column: every block of the launch finds
// the square's factor for itself, which is no later than waiting for it.
__global__ void __launch_bounds__(kThreads)
    eliminate_columns(const i64* __restrict__ systems, const i64* __restrict__ starts, int count, i64 step) {
    // Two columns in turns: who is a step ahead must not write what others still read.
    auto& columns = *reinterpret_cast<double (*)[2][2 * kSide]>(shared_memory());
    const Work work = find_work(systems, starts, count);
    if (work.failed_before(step)) return;
    const int r = static_cast<int>(threadIdx.x) / kLanes, c = static_cast<int>(threadIdx.x) % kLanes;
    const double* square = work.tile(step, step);
    double* below = work.tile(step + 1 + work.part, step);
    const i64 stride = work.size();
    double value[2 * kEach][kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
#pragma unroll
        for (int j = 0; j < kEach; ++j) {
            value[i][j] = square[(r + kLanes * i) * stride + c + kLanes * j];
            value[kEach + i][j] = below[(r + kLanes * i) * stride + c + kLanes * j];
        }
    }
    const int live = work.columns(step);
    bool failed = false;
#pragma unroll
    for (int own = 0; own < kEach; ++own) {
        for (int lane = 0; lane < min(kLanes, live - own * kLanes); ++lane) {
            const int at = own * kLanes + lane;
            double* column = columns[at % 2];
            if (c == lane) {
#pragma unroll
                for (int i = 0; i < 2 * kEach; ++i) column[r + kLanes * i] = value[i][own];
            }
            __syncthreads();
            const double pivot = column[at];
            if (!(pivot > 0.0) && !failed) {
                failed = true;
                if (work.part == 0 && threadIdx.x == 0) *work.failure = step * kSide + at + 1;
            }
            // From a pivot that is not positive on there are no numbers.
            const double inverse = pivot > 0.0 ? 1.0 / sqrt(pivot) : Float<double>::kNan;
            double left[2 * kEach];
#pragma unroll
            for (int i = 0; i < 2 * kEach; ++i) left[i] = column[r + kLanes * i] * inverse;
#pragma unroll
            for (int j = own; j < kEach; ++j) {
                const double right = column[c + kLanes * j] * inverse;
                if (j == own && c <= lane) continue;
#pragma unroll
                for (int i = 0; i < 2 * kEach; ++i) value[i][j] -= left[i] * right;
            }
            if (c == lane) {
#pragma unroll
                for (int i = 0; i < 2 * kEach; ++i) value[i][own] = left[i];
            }
        }
    }
    double* kept = work.squares + step * kSide * kSide;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
#pragma unroll
        for (int j = 0; j < kEach; ++j) {
            below[(r + kLanes * i) * stride + c + kLanes * j] = value[kEach + i][j];
            if (work.part == 0) kept[(r + kLanes * i) * kSide + c + kLanes * j] = value[i][j];
        }
    }
}

// Two operands of kSide variables and as many samples: element (sample, variable) at sample * kPitch +
// variable.
struct Operands {
    double left[kOperand], right[kOperand];
};

// Reads element(variable, sample) of one operand.
template <class Element>
__device__ inline void load_operand(double* operand, bool along_samples, Element element) {
    for (int first = 0; first < kSide; first += Sizes::kDepth) {
        Stage<double, kSide> stage;
        stage.fetch(along_samples, [&](int variable, int depth) { return element(variable, first + depth); });
        stage.put(operand + first * Sizes::kPitch, along_samples);
    }
}

// Takes the product of both operands out of a tile.
__device__ inline void take_out(const double* left, const double* right, double* tile, i64 stride) {
    Sums<double, kSide> sums;
#pragma unroll
    for (int i = 0; i < Sizes::kSums; ++i) sums.at(i) = 0;
    for (int first = 0; first < kSide; first += Sizes::kDepth)
        sums.multiply(left + first * Sizes::kPitch, right + first * Sizes::kPitch);
#pragma unroll
    for (int i = 0; i < Sizes::kSums; ++i) tile[sums.row_of(i) * stride + sums.column_of(i)] -= sums.at(i);
}

__global__ void __launch_bounds__(kThreads)
    update_tiles(const i64* __restrict__ systems, const i64* __restrict__ starts, int count, i64 step) {
    auto& shared = *reinterpret_cast<Operands*>(shared_memory());
    const Work work = find_work(systems, starts, count);
    // This step's own failure is in the order too: its tiles are of no use either.
    if (work.failed_before(step + 1)) return;
    const TilePlace place = place_of(work, step + 1, work.part);
    const i64 stride = work.size();
    const bool diagonal = place.row == place.column;
    const auto load = [&](double* operand, i64 row) {
        const double* rows = work.tile(row, step);
        load_operand(operand, true, [&](int variable, int depth) { return rows[variable * stride + depth]; });
    };
    load(shared.left, place.row);
    if (!diagonal) load(shared.right, place.column);
    __syncthreads();
    take_out(shared.left, diagonal ? shared.left : shared.right, work.tile(place.row, place.column), stride);
}

__global__ void __launch_bounds__(kThreads)
    substitute_back(const i64* __restrict__ systems, const i64* __restrict__ starts, int count, i64 step) {
    auto& shared = *reinterpret_cast<Operands*>(shared_memory());
    auto& columns = *reinterpret_cast<double (*)[2][kSide]>(shared_memory() + sizeof(Operands));
    const Work work = find_work(systems, starts, count);
    if (work.failed_before(work.blocks)) return;
    const i64 before = max(step, i64{1}), stride = work.size();
    const i64 side = work.part / before, target = work.part % before;
    const int r = static_cast<int>(threadIdx.x) / kLanes, c = static_cast<int>(threadIdx.x) % kLanes;
    const double* right = work.tile(work.blocks + side, step);
    // The square is where the left operand will be.
    double* square = shared.left;
    for (int e = static_cast<int>(threadIdx.x); e < kSide * kSide; e += kThreads)
        square[e] = work.squares[step * kSide * kSide + e];
    double value[kEach][kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
#pragma unroll
        for (int j = 0; j < kEach; ++j) value[i][j] = right[(r + kLanes * i) * stride + c + kLanes * j];
    }
    const int live = work.columns(step);
#pragma unroll
    for (int own = kEach - 1; own >= 0; --own) {
        for (int lane = min(kLanes, live - own * kLanes) - 1; lane >= 0; --lane) {
            const int at = own * kLanes + lane;
            double* column = columns[at % 2];
            if (c == lane) {
#pragma unroll
                for (int i = 0; i < kEach; ++i) column[r + kLanes * i] = value[i][own];
            }
            __syncthreads();
            const double* row = square + at * kSide;
            double found[kEach];
#pragma unroll
            for (int i = 0; i < kEach; ++i) found[i] = column[r + kLanes * i] / row[at];
#pragma unroll
            for (int j = 0; j <= own; ++j) {
                if (j == own && c >= lane) continue;
                const double factor = row[c + kLanes * j];
#pragma unroll
                for (int i = 0; i < kEach; ++i) value[i][j] -= found[i] * factor;
            }
            if (c == lane) {
#pragma unroll
                for (int i = 0; i < kEach; ++i) value[i][own] = found[i];
            }
        }
    }
    double* unknowns = work.unknowns + side * kSide * stride + step * kSide;
    if (target == 0) {
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
#pragma unroll
            for (int j = 0; j < kEach; ++j)
                unknowns[(r + kLanes * i) * stride + c + kLanes * j] = value[i][j];
        }
    }
    if (step == 0) return;
    const double* rows = work.tile(step, target);
    load_operand(shared.right, false,
                 [&](int variable, int depth) { return rows[depth * stride + variable]; });
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
#pragma unroll
        for (int j = 0; j < kEach; ++j)
            shared.left[(c + kLanes * j) * Sizes::kPitch + r + kLanes * i] = value[i][j];
    }
    __syncthreads();
    take_out(shared.left, shared.right, work.tile(work.blocks + side, target), stride);
}

__global__ void __launch_bounds__(kThreads)
    store_solutions(const i64* __restrict__ systems, const i64* __restrict__ starts, int count) {
    const Work work = find_work(systems, starts, count);
    const i64* system = work.system;
    const i64 first = work.part % work.blocks * kSide, first_side = work.part / work.blocks * kSide;
    const i64 sides = system[kSolveSides];
    const bool failed = *work.failure != 0;
    for (int e = static_cast<int>(threadIdx.x); e < kSide * kSide; e += kThreads) {
        const i64 i = first + e / kSide, side = first_side + e % kSide;
        if (i >= system[kSolveSize] || side >= sides) continue;
        const double value = failed ? Float<double>::kNan : work.unknowns[side * work.size() + i];
        if (system[kSolveIsDouble]) {
            reinterpret_cast<double*>(system[kSolveSolution])[i * sides + side] = value;
        } else {
            reinterpret_cast<float*>(system[kSolveSolution])[i * sides + side] = static_cast<float>(value);
        }
    }
}

}  // namespace

// Launch and entry.

void solve_load(Stream stream, const i64* systems, const i64* starts, int count, i64 blocks) {
    launch("solve_load", load_systems, stream, Shape{blocks, kThreads}, systems, starts, count);
}

void solve_panel(Stream stream, const i64* systems, const i64* starts, int count, i64 blocks, i64 step) {
    launch("solve_panel", eliminate_columns, stream, Shape{blocks, kThreads, 4 * kSide * sizeof(double)},
           systems, starts, count, step);
}

void solve_update(Stream stream, const i64* systems, const i64* starts, int count, i64 blocks, i64 step) {
    launch("solve_update", update_tiles, stream, Shape{blocks, kThreads, sizeof(Operands)}, systems, starts,
           count, step);
}

void solve_backward(Stream stream, const i64* systems, const i64* starts, int count, i64 blocks, i64 step) {
    launch("solve_backward", substitute_back, stream,
           Shape{blocks, kThreads, sizeof(Operands) + 2 * kSide * sizeof(double)}, systems, starts, count,
           step);
}

void solve_store(Stream stream, const i64* systems, const i64* starts, int count, i64 blocks) {
    launch("solve_store", store_solutions, stream, Shape{blocks, kThreads}, systems, starts, count);
}

}  // namespace slimfast::cuda
