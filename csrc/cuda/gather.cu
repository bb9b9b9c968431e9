#include "gather.hpp"
#include "reduce.cuh"

namespace slimfast::cuda {
namespace {

// Traits: how much a block and a thread move, and division by a number known beforehand.

constexpr unsigned kThreads = 256;
constexpr int kInFlight = 4;
static_assert(kGatherTile % (kThreads * kInFlight) == 0, "a tile is whole rounds of loads in flight");

// n / d as a multiplication and a shift, for 0 <= n < 2^31 and 1 <= d < 2^31 (Granlund and Montgomery, 1994):
// with shift = ceil(log2 d), the multiplier is floor(2^32 (2^shift - d) / d) + 1. A table entry packs shift
// << 32 over it.
struct Divisor {
    unsigned multiplier, shift;

    __device__ explicit Divisor(std::int64_t packed)
        : multiplier(static_cast<unsigned>(packed)), shift(static_cast<unsigned>(packed >> 32)) {}

    __device__ unsigned divide(unsigned n) const { return (__umulhi(n, multiplier) + n) >> shift; }
};

// The source offset of any unit of one tensor's result.
class Addresses {
  public:
    __device__ Addresses(const std::int64_t* fields, const std::int64_t* table)
        : row_units_(fields[kGatherDivisors]),
          middle_units_(fields[kGatherDivisors + 1]),
          inner_units_(fields[kGatherDivisors + 2]),
          a_(fields[kGatherDivisors + 3]),
          row_length_(fields[kGatherRowLength]),
          middle_length_(static_cast<unsigned>(fields[kGatherMiddleLength])),
          inner_length_(static_cast<unsigned>(fields[kGatherInnerLength])),
          size_a_(fields[kGatherSizeA]),
          index_a_(fields[kGatherIndexA] < 0 ? nullptr : table + fields[kGatherIndexA]),
          index_b_(fields[kGatherIndexB] < 0 ? nullptr : table + fields[kGatherIndexB]) {
#pragma unroll
        for (int i = 0; i < 5; ++i) strides_[i] = fields[kGatherStrides + i];
    }

    // `row` counts (outer, a) pairs; `rest` is the unit within it.
    __device__ std::int64_t operator()(std::int64_t row, unsigned rest) const {
        const std::int64_t outer = row < kSmall ? a_.divide(static_cast<unsigned>(row)) : row / size_a_;
        const std::int64_t a = row - outer * size_a_;
        const unsigned middle = middle_units_.divide(rest);
        rest -= middle * middle_length_;
        const unsigned b = inner_units_.divide(rest);
        const unsigned inner = rest - b * inner_length_;
        return outer * strides_[0] + (index_a_ ? __ldg(index_a_ + a) : a) * strides_[1] +
               middle * strides_[2] + (index_b_ ? __ldg(index_b_ + b) : b) * strides_[3] +
               inner * strides_[4];
    }

    __device__ std::int64_t row_length() const { return row_length_; }
    __device__ unsigned row_of(unsigned unit) const { return row_units_.divide(unit); }

  private:
    static constexpr std::int64_t kSmall = std::int64_t{1} << 31;
    Divisor row_units_, middle_units_, inner_units_, a_;
    std::int64_t row_length_;
    unsigned middle_length_, inner_length_;
    std::int64_t size_a_;
    const std::int64_t* index_a_;
    const std::int64_t* index_b_;
    std::int64_t strides_[5];
};

// Kernel: one block writes one tile of one tensor; neighbours in the result are neighbouring threads.

template <class Unit>
__device__ void copy_tile(const std::int64_t* fields, const std::int64_t* table, std::int64_t first) {
    const Addresses address(fields, table);
    const Unit* source = reinterpret_cast<const Unit*>(fields[kGatherSource]);
    Unit* target = reinterpret_cast<Unit*>(fields[kGatherTarget]);
    const std::int64_t units = fields[kGatherUnits];
    const std::int64_t first_row = first / address.row_length();
    const auto first_rest = static_cast<unsigned>(first - first_row * address.row_length());
    for (unsigned round = 0; round < kGatherTile; round += kThreads * kInFlight) {
        Unit moved[kInFlight];
#pragma unroll
        for (int i = 0; i < kInFlight; ++i) {
            const unsigned local = round + i * kThreads + threadIdx.x;
            if (first + local >= units) continue;
            const unsigned unit = first_rest + local;
            const unsigned row = address.row_of(unit);
            moved[i] =
                source[address(first_row + row, unit - row * static_cast<unsigned>(address.row_length()))];
        }
#pragma unroll
        for (int i = 0; i < kInFlight; ++i) {
            const std::int64_t at = first + round + i * kThreads + threadIdx.x;
            if (at < units) target[at] = moved[i];
        }
    }
}

__global__ void __launch_bounds__(kThreads) gather_tiles(const std::int64_t* __restrict__ table, int count) {
    const int tensor = find_segment(table, count, blockIdx.x);
    const std::int64_t* fields = table + count + 1 + std::int64_t{tensor} * kGatherFields;
    const std::int64_t first = (blockIdx.x - table[tensor]) * kGatherTile;
    switch (fields[kGatherUnitBytes]) {
        case 16:
            return copy_tile<uint4>(fields, table, first);
        case 8:
            return copy_tile<uint2>(fields, table, first);
        case 4:
            return copy_tile<std::uint32_t>(fields, table, first);
        case 2:
            return copy_tile<std::uint16_t>(fields, table, first);
        default:
            return copy_tile<std::uint8_t>(fields, table, first);
    }
}

}  // namespace

// Launch and entry.

void gather(Stream stream, const std::int64_t* table, int count, std::int64_t tiles) {
    launch("gather_tiles", gather_tiles, stream, Shape{tiles, kThreads}, table, count);
}

}  // namespace slimfast::cuda
