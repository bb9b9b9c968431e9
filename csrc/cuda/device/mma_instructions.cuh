// Products of small matrices on the tensor cores, by the lanes of a warp together.
#pragma once

#include "../reduce.cuh"

namespace slimfast::cuda {

// sum (16, 8) += a (16, 8) b (8, 8), of which lane 4 g + t holds a[g + 8 (i % 2)][t + 4 (i / 2)],
// b[t + 4 i][g] and sum[g + 8 (i / 2)][2 t + i % 2] (PTX ISA, mma.m16n8k8 with .f64).
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

// The 11 leading bits of x, rounded.
__device__ inline float to_tf32(float x) {
    unsigned bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return __uint_as_float(bits);
}

// As above; of the operands only the 11 leading bits count.
__device__ inline void multiply_add(float (&sum)[4], const float (&a)[4], const float (&b)[2]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
          "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}

}  // namespace slimfast::cuda
