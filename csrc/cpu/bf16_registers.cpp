// Covariances of bfloat16 samples by vdpbf16ps, whose sums stay in registers.
#include "bf16-inl.hpp"
#include "bf16_dot-inl.hpp"

namespace slimfast::SLIMFAST_ISA {

template <int kRows, int kCols>
SLIMFAST_INLINE void registers_product(const std::uint16_t* a, const std::uint16_t* b, i64 stride, i64 cells,
                                       float* const (&sums)[2]) {
    Vec<float> tile[kRows][kCols] = {};
    for (i64 k = 0; k < cells; ++k, a += kCell, b += kCell) {
        for (i64 p = 0; p < kPairs; ++p) {
            Pairs right[kCols];
            for (int c = 0; c < kCols; ++c) {
                std::memcpy(&right[c], b + c * stride + p * kDepth, sizeof right[c]);
            }
            for (int r = 0; r < kRows; ++r) {
                std::int32_t pair;
                std::memcpy(&pair, a + r * kDepth + 2 * p, sizeof pair);
                const Pairs left = pair - Pairs{};
                for (int c = 0; c < kCols; ++c) tile[r][c] = dot(tile[r][c], left, right[c]);
            }
        }
    }
    for (int r = 0; r < kRows; ++r) {
        for (int c = 0; c < kCols; ++c) store(sums[c] + r * kPanel, tile[r][c]);
    }
}

struct RegisterProducts {
    // A register has one mean a sample in its sum.
    static constexpr i64 kChainCells = 2;
    struct Setup {};

    SLIMFAST_INLINE static void multiply(const std::uint16_t* a, const std::uint16_t* b, i64 stride,
                                         i64 cells, int rows, int cols, PanelSums& sums) {
        constexpr int step = 8;
        for (int r = 0; r < rows * kPanel; r += step) {
            const std::uint16_t* left = a + r / kPanel * stride + r % kPanel * kDepth;
            const auto at = [&](int c) { return sums.of[r / kPanel][c] + r % kPanel * kPanel; };
            if (cols == 2) {
                registers_product<step, 2>(left, b, stride, cells, {at(0), at(1)});
            } else {
                registers_product<step, 1>(left, b, stride, cells, {at(0), nullptr});
            }
        }
    }
};

constexpr Bf16Kernels kBf16Kernels{row_squares, bf16_block<RegisterProducts>};

extern const IsaKernels kOwn;
const IsaKernels kOwn{nullptr, &kBf16Kernels};

}  // namespace slimfast::SLIMFAST_ISA
