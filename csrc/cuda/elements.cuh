// Reading layers of any element type.
#pragma once

#include "covariance.hpp"
#include "launch.cuh"

namespace slimfast::cuda {

__device__ inline double to_double(float x) { return x; }
__device__ inline double to_double(double x) { return x; }
__device__ inline double to_double(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline double to_double(__half x) { return __half2float(x); }
__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(double x) { return static_cast<float>(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }

// x - mean. In float32 the mean comes in two parts, so that a mean far larger than the deviations costs no
// digits.
template <class X>
__device__ inline float centred(X x, double mean, float) {
    const float high = static_cast<float>(mean);
    return (to_float(x) - high) - static_cast<float>(mean - high);
}
template <class X>
__device__ inline double centred(X x, double mean, double) {
    return to_double(x) - mean;
}

// Calls action(pointer) with data in its own type: an address and the Dtype behind it, as a layer's row
// begins.
template <class Action>
__device__ inline void with_elements(const i64* data, Action action) {
    switch (static_cast<Dtype>(data[1])) {
        case Dtype::kFloat32:
            return action(reinterpret_cast<const float*>(data[0]));
        case Dtype::kFloat64:
            return action(reinterpret_cast<const double*>(data[0]));
        case Dtype::kBfloat16:
            return action(reinterpret_cast<const __nv_bfloat16*>(data[0]));
        default:
            return action(reinterpret_cast<const __half*>(data[0]));
    }
}
static_assert(kCovX == 0 && kCovXType == 1, "a layer's row begins with its data");

__device__ inline double scale_of(const i64* layer) {
    return 1.0 / static_cast<double>(max(layer[kCovColumns] - 1, i64{1}));
}

}  // namespace slimfast::cuda
