// Covariances of bfloat16 samples by tdpbf16ps, which multiplies tiles.
#include "bf16-inl.hpp"
#include "bf16_tile_products-inl.hpp"

namespace slimfast::SLIMFAST_ISA {

struct TileProducts {
    // A tile adds up 16 pairs on their own.
    static constexpr i64 kChainCells = 8;
    using Setup = Tiles;

    SLIMFAST_INLINE static void multiply(const std::uint16_t* a, const std::uint16_t* b, i64 stride,
                                         i64 cells, int rows, int cols, PanelSums& sums) {
        tile_products(a, b, stride, cells, rows, cols, sums);
    }
};

constexpr Bf16Kernels kBf16Kernels{row_squares, bf16_block<TileProducts>};

extern const IsaKernels kOwn;
const IsaKernels kOwn{nullptr, &kBf16Kernels};

}  // namespace slimfast::SLIMFAST_ISA
