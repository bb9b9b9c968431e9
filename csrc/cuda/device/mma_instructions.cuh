// Products of small matrices by the lanes of a warp together, in float64 on the tensor cores.
#pragma once

#include "reduce.cuh"

namespace slimfast::cuda {

// sum (16, 8) += a (16, 8) b (8, 8), of which lane 4 g + t holds a[g + 8 (i % 2)][t + 4 (i / 2)],
// b[t + 4 i][g] and sum[g + 8 (i / 2)][2 t + i % 2] (PTX ISA, mma.m16n8k8 with .f64).
#ifdef SLIMFAST_CUDA_EMULATION
inline void multiply_add(double (&sum)[4], const double (&a)[4], const double (&b)[2], EMULATION_SITE) {
    struct Operands {
        double a[4], b[2];
    };
    const Operands mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
    const std::uint64_t* all = emulation::exchange(emulation::to_bits<const Operands*>(&mine), {file, line});
    const Operands* lanes[32];
    for (int lane = 0; lane < 32; ++lane) lanes[lane] = emulation::from_bits<const Operands*>(all[lane]);
    for (int i = 0; i < 4; ++i) {
        const int row = lane_index() / 4 + 8 * (i / 2);
        const int column = 2 * (lane_index() % 4) + i % 2;
        for (int k = 0; k < 8; ++k) {
            sum[i] +=
                lanes[row % 8 * 4 + k % 4]->a[row / 8 + k / 4 * 2] * lanes[column * 4 + k % 4]->b[k / 4];
        }
    }
    // Nobody leaves with its operands before all have read them.
    emulation::exchange(0, {file, line});
}
#else
__device__ inline void multiply_add(double (&sum)[4], const double (&a)[4], const double (&b)[2]) {
#if __CUDA_ARCH__ >= 900
    asm("mma.sync.aligned.m16n8k8.row.col.f64.f64.f64.f64 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+d"(sum[0]), "+d"(sum[1]), "+d"(sum[2]), "+d"(sum[3])
        : "d"(a[0]), "d"(a[1]), "d"(a[2]), "d"(a[3]), "d"(b[0]), "d"(b[1]));
#else
#pragma unroll
    for (int half = 0; half < 4; ++half) {
        const int row = half % 2;
        const int k = half / 2;
        asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
            : "+d"(sum[2 * row]), "+d"(sum[2 * row + 1])
            : "d"(a[row + 2 * k]), "d"(b[k]));
    }
#endif
}
#endif

}  // namespace slimfast::cuda
